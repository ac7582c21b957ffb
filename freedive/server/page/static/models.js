// The choice of the model.

import { get } from "./api.js";
import { byId } from "./dom.js";

const STORED = "model"; // the model that was chosen last, for new conversations
const choice = byId("model");

// Where keys are needed, the page comes without the names of models.
export async function offerModels() {
  if (choice.options.length) return;
  const { models } = await get("/app/models");
  choice.append(...models.map((name) => new Option(name)));
  choice.disabled = models.length === 1;
}

export const chosenModel = () => choice.value;

// Shows the model of a conversation, or the one that was chosen last.
export function showModel(name = localStorage.getItem(STORED)) {
  const names = [...choice.options].map(({ value }) => value);
  choice.value = names.includes(name) ? name : names[0];
}

export function onModel(change) {
  choice.addEventListener("change", () => {
    localStorage.setItem(STORED, choice.value);
    change(choice.value);
  });
}
