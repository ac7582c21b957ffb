// Files for the conversation: read in the browser, refused by name, shown as chips.

import { element, icon, iconButton } from "./dom.js";
import { number, word } from "./translations.js";

export const LONG_PASTE = 4000; // characters above which a pasted text becomes a file
const MAX_BYTES = 32 << 20;

// Returns the file as the server takes it. Throws an Error with the reason for those that it does not.
export async function readFile(file) {
  const name = file.name.slice(0, 300) || word("pasted_name");
  if (file.type.startsWith("image/")) throw new Error(word("no_images", { name }));
  if (file.size > MAX_BYTES) throw new Error(word("too_large", { name }));
  const bytes = await file.arrayBuffer();
  if (isPdf(bytes)) return { name, media_type: "application/pdf", base64: await base64(file) };
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    if (!text.includes("\0")) return { name, media_type: "text/plain", text };
  } catch {
    // not UTF-8
  }
  throw new Error(word("not_text", { name }));
}

const isPdf = (bytes) => new TextDecoder("latin1").decode(bytes.slice(0, 5)) === "%PDF-";

export function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

export const pastedFile = (text) => new File([text], word("pasted_name"), { type: "text/plain" });

export function fileChip(file, { open, drop } = {}) {
  const size = file.num_tokens == null ? "" : word("tokens", { tokens: number(file.num_tokens) });
  const texts = [element("span", { className: "name" }, file.name), element("span", { className: "size" }, size)];
  const face = element(open ? "button" : "span", { className: "face" }, icon("file"), ...texts);
  if (open) {
    face.type = "button";
    face.addEventListener("click", open);
  }
  const chip = element("span", { className: "chip" }, face);
  if (drop) chip.append(iconButton("close", "remove", drop));
  return chip;
}
