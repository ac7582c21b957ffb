// The key, where the server asks for one. It stays in this browser.

const STORED = "key";

const [gate, field, wrong] = ["gate", "key", "wrong"].map((id) => document.getElementById(id));
let entered = null; // settles a wait for a key

export function authorization() {
  const key = localStorage.getItem(STORED);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// Resolves when the reader has entered a key; the one there is, if any, was refused.
export function newKey(signal) {
  wrong.hidden = !localStorage.getItem(STORED);
  gate.hidden = false;
  field.focus();
  return new Promise((resolve, reject) => {
    entered = resolve;
    signal.addEventListener("abort", () => {
      gate.hidden = true;
      reject(signal.reason);
    });
  });
}

gate.addEventListener("submit", (event) => {
  event.preventDefault();
  localStorage.setItem(STORED, field.value.trim());
  field.value = "";
  gate.hidden = true;
  entered?.();
});

if (localStorage.getItem(STORED)) gate.hidden = true;
