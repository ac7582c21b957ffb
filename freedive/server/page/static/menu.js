// A small menu beside a button, and a dialog that asks for one line of text.

import { byId, element, icon } from "./dom.js";
import { word } from "./translations.js";

const menu = byId("menu");

// Shows items of {icon, key, act}, with a text instead of the key, or with an href to download. A menu of a dialog stands
// `within` it: what is outside cannot be used meanwhile.
export function openMenu(button, items, within = document.body) {
  within.append(menu);
  menu.replaceChildren(...items.map(entry));
  menu.showPopover();
  const { left, bottom, top } = button.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = menu;
  menu.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
  menu.style.top = `${bottom + height > innerHeight ? Math.max(8, top - height) : bottom}px`;
  menu.firstElementChild.focus();
  menu.button = button;
}

function entry({ icon: picture, key, text = word(key), act, href }) {
  const node = element(href ? "a" : "button", { className: "entry" }, icon(picture), text);
  if (href) Object.assign(node, { href, download: "" });
  else node.type = "button";
  node.setAttribute("role", "menuitem");
  node.addEventListener("click", () => {
    menu.hidePopover();
    act?.();
  });
  return node;
}

menu.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (event.key === "Escape") menu.button.focus();
  if (!step) return;
  event.preventDefault();
  const entries = [...menu.children];
  entries.at((entries.indexOf(document.activeElement) + step) % entries.length).focus();
});

const dialog = byId("prompt");

// Resolves to the text, or to null if the reader cancels.
export function askText(key, value, suggestions = []) {
  const [title, field, list] = ["prompt-title", "prompt-text", "prompt-suggestions"].map(byId);
  title.textContent = word(key);
  field.value = value;
  list.replaceChildren(...suggestions.map((text) => element("option", { value: text })));
  dialog.showModal();
  field.select();
  return new Promise((resolve) => {
    dialog.onsubmit = (event) => {
      event.preventDefault();
      dialog.close();
      resolve(field.value.trim());
    };
    dialog.onclose = () => resolve(null);
  });
}
