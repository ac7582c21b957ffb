// Copy buttons: of a code block, or of a whole answer as the model wrote it.

import { word } from "./translations.js";

export async function copied(button) {
  await write(button.answer?.text ?? button.closest("figure").querySelector("code").textContent);
  button.textContent = word("copied");
  setTimeout(() => (button.textContent = word("copy")), 1500);
}

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
