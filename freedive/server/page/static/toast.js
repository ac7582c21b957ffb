// Short messages at the edge of the page, with an action at most: undo.

import { byId, element, textButton } from "./dom.js";

const SHOWN_MS = 8000;

export function toast(text, action) {
  const node = element("div", { className: "toast" }, element("span", {}, text));
  const end = () => node.remove();
  if (action) node.append(textButton(action.key, () => (end(), action.act())));
  byId("toasts").append(node);
  setTimeout(end, SHOWN_MS);
}
