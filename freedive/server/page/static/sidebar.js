// The side bar, open or closed.

import { byId } from "./dom.js";
import { remember } from "./looks.js";

const root = document.documentElement;
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
