// The key, where the server asks for one. The server keeps it in a cookie that scripts cannot read.

import { byId } from "./dom.js";

const [gate, field, wrong] = ["gate", "key", "wrong"].map(byId);
let asking = null; // the one wait for a key

// Resolves when the server has accepted a key.
export function newKey() {
  asking ??= new Promise((resolve) => {
    gate.showModal();
    gate.onsubmit = async (event) => {
      event.preventDefault();
      wrong.hidden = await accepted(field.value.trim());
      if (!wrong.hidden) return field.select();
      field.value = "";
      gate.close();
      asking = null;
      resolve();
    };
  });
  return asking;
}

gate.addEventListener("cancel", (event) => event.preventDefault());

async function accepted(key) {
  const headers = { "Content-Type": "application/json" };
  const response = await fetch("/app/session", { method: "POST", headers, body: JSON.stringify({ key }) });
  return response.ok;
}
