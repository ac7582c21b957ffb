// Search over all conversations.

import { get } from "./api.js";
import { ROOT } from "./conversation.js";
import { byId, element } from "./dom.js";
import { word } from "./translations.js";

const TYPING_MS = 120;

const [dialog, field, results, nothing] = ["search", "search-text", "search-results", "search-nothing"].map(byId);
let control = null;
let timer = 0;

export function openSearch() {
  if (dialog.open) return field.select();
  dialog.showModal();
  field.select();
}

async function look() {
  control?.abort();
  control = new AbortController();
  const { signal } = control;
  const query = field.value.trim();
  try {
    const path = `${ROOT}/search?q=${encodeURIComponent(query.slice(0, 1000))}`;
    const { hits } = query ? await get(path, signal) : { hits: [] };
    if (signal.aborted) return;
    results.replaceChildren(...hits.map(hit));
    select(0);
    nothing.hidden = !query || hits.length > 0;
  } catch (error) {
    if (signal.aborted) return;
    results.replaceChildren();
    nothing.hidden = false;
    nothing.textContent = error.message;
    return;
  }
  nothing.textContent = word("nothing_found");
}

function hit({ id, title, snippet }, index) {
  const heading = element("strong", {}, title || word("untitled"));
  const link = element("a", { id: `hit-${index}`, tabIndex: -1 }, heading, element("span", {}, ...marked(snippet)));
  link.href = snippet.message ? `#${id}/${snippet.message}` : `#${id}`;
  link.setAttribute("role", "option");
  link.addEventListener("click", () => dialog.close());
  return link;
}

// The text in pieces; what matched is marked.
export function marked({ text, marks }) {
  const pieces = [];
  let at = 0;
  for (const [start, end] of marks) {
    pieces.push(text.slice(at, start), element("mark", {}, text.slice(start, end)));
    at = end;
  }
  return [...pieces, text.slice(at)];
}

function select(index) {
  const links = [...results.children];
  for (const [place, link] of links.entries()) link.setAttribute("aria-selected", place === index);
  field.setAttribute("aria-activedescendant", links[index]?.id ?? "");
  links[index]?.scrollIntoView({ block: "nearest" });
}

function selected() {
  return [...results.children].findIndex((link) => link.getAttribute("aria-selected") === "true");
}

field.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(look, TYPING_MS);
});
field.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  const count = results.children.length;
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && count) {
    event.preventDefault();
    select((selected() + step + count) % count);
  }
  if (event.key === "Enter") {
    event.preventDefault();
    results.children[selected()]?.click();
  }
});
dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
