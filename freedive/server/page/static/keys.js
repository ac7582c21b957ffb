// The keyboard: one table of what it does, which is also the list that `?` shows.

import { byId, element } from "./dom.js";
import { word } from "./translations.js";

const isMac = navigator.platform.startsWith("Mac");
const dialog = byId("help");

// `press`: as the browser names it, with Ctrl (Command on a Mac), Shift and Alt before it.
export function listen(acts) {
  const table = [
    { press: "Ctrl+K", key: "search", act: acts.search },
    { press: "Ctrl+Shift+O", key: "new_chat", act: acts.newChat },
    { press: "Ctrl+B", key: "sidebar", act: acts.sidebar },
    { press: "Ctrl+E", key: "experts", act: acts.experts },
    { press: "Ctrl+,", key: "settings", act: acts.settings },
    { press: "Ctrl+.", key: "models", act: acts.models },
    { press: "Escape", key: "stop", act: acts.stop },
    { press: "Shift+Escape", key: "focus_message", act: acts.focus },
    { press: "?", key: "keyboard", act: () => dialog.showModal() },
  ];
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.defaultPrevented) return;
    const entry = table.find(({ press }) => press.toLowerCase() === pressed(event));
    if (!entry || isTaken(event)) return;
    if (entry.act() !== false) event.preventDefault();
  });
  const written = [...table, { press: "Enter", key: "send" }, { press: "Shift+Enter", key: "line_break" }, { press: "↑", key: "edit_last" }];
  byId("help-keys").append(...written.flatMap(shown));
}

function pressed({ key, ctrlKey, metaKey, shiftKey, altKey }) {
  const command = isMac ? metaKey : ctrlKey;
  const shift = shiftKey && key !== "?";
  const parts = [command && "ctrl", altKey && "alt", shift && "shift", key.toLowerCase()];
  return parts.filter(Boolean).join("+");
}

// Within a dialog its own keys count, and in a field `?` is a letter.
function isTaken({ key, target }) {
  if (document.querySelector("dialog[open], #menu:popover-open")) return key !== "k" && key !== "K";
  return key === "?" && target.matches("input, textarea, select");
}

function shown({ press, key }) {
  const names = press.split(/\+(?=.)/).map((name) => (name === "Ctrl" && isMac ? "⌘" : name === "Escape" ? "Esc" : name));
  const keys = names.map((name) => element("kbd", {}, name));
  return [element("dt", {}, ...keys), element("dd", {}, word(key))];
}
