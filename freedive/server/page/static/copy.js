// Copying to the clipboard.

import { word } from "./translations.js";

const SHOWN_MS = 1500;

// The button says that it is done.
export async function copy(button, text) {
  await write(text);
  if (button.dataset.text) {
    button.textContent = word("copied");
    setTimeout(() => (button.textContent = word("copy")), SHOWN_MS);
  } else {
    button.classList.add("done");
    button.title = word("copied");
    setTimeout(() => {
      button.classList.remove("done");
      button.title = word("copy");
    }, SHOWN_MS);
  }
}

// The copy button of a code block, which the server rendered.
document.addEventListener("click", ({ target }) => {
  if (target.matches(".code .copy")) copy(target, target.closest("figure").querySelector("code").textContent);
});

// The clipboard API exists only on secure origins, and a server on the home network is not one.
async function write(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
