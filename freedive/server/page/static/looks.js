// Language and colours, which the server knows from cookies, like side bar and expert map: the page comes as it was left.

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
