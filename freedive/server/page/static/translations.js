// The page's texts in the reader's language. The server writes translations.json, the one list of them, into the page.

const all = JSON.parse(document.getElementById("translations").textContent);
const root = document.documentElement;

export function word(key, values = {}) {
  return all[root.lang][key].replace(/{(\w+)}/g, (_, name) => values[name]);
}

// Fill in whatever is labelled within a part of the page.
export function label(part) {
  for (const node of part.querySelectorAll("[data-text]")) node.textContent = word(node.dataset.text);
  for (const node of part.querySelectorAll("[data-label]")) {
    node.title = word(node.dataset.label);
    node.setAttribute("aria-label", node.title);
  }
  for (const node of part.querySelectorAll("[data-placeholder]")) node.placeholder = word(node.dataset.placeholder);
}

export function nextLanguage() {
  const languages = Object.keys(all);
  return languages[(languages.indexOf(root.lang) + 1) % languages.length];
}

export function setLanguage(language) {
  root.lang = language;
  document.cookie = `lang=${language}; path=/; max-age=31536000; SameSite=Strict`;
  label(document);
}

export const languageName = (language) => all[language].language;
