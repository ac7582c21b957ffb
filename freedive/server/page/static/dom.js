// Nodes of the page. Texts become text nodes, never HTML.

import { name, word } from "./translations.js";

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// An element of a picture.
export function drawn(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export const icon = (id) =>
  drawn("svg", { class: "icon", "aria-hidden": "true" }, drawn("use", { href: `#icon-${id}` }));

// A button with a picture; `key` names it in the reader's language.
export function iconButton(id, key, act) {
  const button = element("button", { type: "button", className: `icon-button ${id}` }, icon(id));
  name(button, key);
  button.addEventListener("click", act);
  return button;
}

export function textButton(key, act, className = "") {
  const button = element("button", { type: "button", className }, word(key));
  button.addEventListener("click", act);
  return button;
}

// Safe HTML of the server, as nodes.
export function rendered(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}
