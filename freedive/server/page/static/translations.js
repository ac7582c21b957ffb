// The page's texts in the reader's language, which the server writes into the page.

const texts = JSON.parse(document.getElementById("translations").textContent);
const root = document.documentElement;

export function word(key, values = {}) {
  return texts[key].replace(/{(\w+)}/g, (_, name) => values[name]);
}

// Digits in groups, at most `digits` of them behind the point.
export function number(value, digits = 0) {
  return value.toLocaleString(root.lang, { maximumFractionDigits: digits });
}

// Fills in whatever is labelled within a part of the page.
export function label(part) {
  for (const node of part.querySelectorAll("[data-text]")) node.textContent = word(node.dataset.text);
  for (const node of part.querySelectorAll("[data-label]")) name(node, node.dataset.label);
}

// Names a control that shows only a picture.
export function name(node, key) {
  node.title = word(key);
  node.setAttribute("aria-label", node.title);
}
