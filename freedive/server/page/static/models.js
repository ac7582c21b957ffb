// The choice of the model in the header, and whether it is loaded.

import { get } from "./api.js";
import { byId } from "./dom.js";
import { word } from "./translations.js";

const STORED = "model"; // the model that was chosen last, for new conversations
const [choice, other, button] = ["model", "model-beside", "library-open"].map(byId);
let states = {};

// Where keys are needed, the page comes without the names of models.
export async function offerModels() {
  const { states: now, may } = await get("/app/models");
  showStates(now);
  byId("stats-open").hidden = !may.includes("manage");
}

// Shows which models there are and what they do: asleep, loading or loaded.
export function showStates(now) {
  states = now;
  const names = Object.keys(states);
  for (const select of [choice, other]) offer(select, names);
  choice.disabled = names.length === 1;
  showState();
}

function offer(select, names) {
  const before = [...select.options].map(({ value }) => value);
  if (names.join("\n") === before.join("\n")) return;
  const { value } = select;
  select.replaceChildren(...names.map((name) => new Option(name)));
  select.value = names.includes(value) ? value : names[0];
}

function showState() {
  const state = states[choice.value] ?? "asleep";
  button.dataset.state = state;
  button.title = `${word("models")} · ${word(`state_${state}`)}`;
  button.setAttribute("aria-label", button.title);
}

export const chosenModel = () => choice.value;

// Shows the model of a conversation, or the one that was chosen last.
export function showModel(name = localStorage.getItem(STORED)) {
  const names = [...choice.options].map(({ value }) => value);
  choice.value = names.includes(name) ? name : names[0];
  showState();
}

// Chooses a model as a click in the header does.
export function useModel(name) {
  showModel(name);
  choice.dispatchEvent(new Event("change"));
}

export function onModel(change) {
  choice.addEventListener("change", () => {
    localStorage.setItem(STORED, choice.value);
    showState();
    change(choice.value);
  });
}
