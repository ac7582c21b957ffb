// Language, colours, side bar and expert map, which the server knows from cookies so that the page comes as it was left.

import { byId } from "./dom.js";

const root = document.documentElement;
const THEMES = { auto: "light", light: "dark", dark: "auto" };

export function remember(name, value) {
  document.cookie = `${name}=${value}; path=/; max-age=31536000; SameSite=Strict`;
}

byId("language").addEventListener("click", ({ currentTarget }) => {
  remember("lang", currentTarget.value);
  location.reload();
});

byId("theme").addEventListener("click", () => {
  root.dataset.theme = THEMES[root.dataset.theme];
  remember("theme", root.dataset.theme);
});

const isNarrow = () => matchMedia("(max-width: 52rem)").matches;

// On a narrow screen the side bar lies over the page, and closes with a choice.
export function toggleSideBar(open) {
  if (isNarrow()) {
    root.classList.toggle("bar-over", open);
    if (root.classList.contains("bar-over")) byId("new").focus();
  } else if (open === undefined) {
    remember("bar", root.classList.toggle("bar-closed") ? "closed" : "open");
  }
  for (const button of document.querySelectorAll(".sidebar-toggle")) button.setAttribute("aria-expanded", isOpen());
}

const isOpen = () => root.classList.contains(isNarrow() ? "bar-over" : "bar-closed") === isNarrow();

for (const button of document.querySelectorAll(".sidebar-toggle")) {
  button.addEventListener("click", () => toggleSideBar());
}
byId("shade").addEventListener("click", () => toggleSideBar(false));
