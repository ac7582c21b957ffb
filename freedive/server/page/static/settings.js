// The settings of a conversation: system prompt, parameters, the form of answers, tools; and presets of them.

import { byId, element } from "./dom.js";
import { PARAMETERS } from "./parameters.js";
import { drop, presets, save } from "./presets.js";
import { askText } from "./menu.js";
import { word } from "./translations.js";

const [dialog, form, system, schema, schemaWrong, list, rows] = [
  "settings", "settings-form", "system", "schema", "schema-wrong", "presets", "parameters",
].map(byId);
const READ = {
  number: Number,
  integer: Number,
  choice: (text) => text,
  lines: (text) => text.split("\n").filter(Boolean),
};
let keep = null; // receives the settings when they are saved
let others = {}; // settings that are not shown here

rows.append(...PARAMETERS.map(row));

export function openSettings(settings, save) {
  keep = save;
  fill(settings);
  offerPresets();
  dialog.showModal();
}

function row({ name, title, otherwise, ...limits }) {
  const id = `parameter-${name}`;
  const value = typeof otherwise === "string" ? word(otherwise) : String(otherwise);
  const fallback = typeof otherwise === "string" ? "by_default" : "by_model";
  const label = element("label", { htmlFor: id }, word(title ?? name));
  const note = element("p", { id: `${id}-note` }, `${word(`${name}_does`)} ${word(fallback, { value })}`);
  const input = field(limits, value);
  input.id = id;
  input.setAttribute("aria-describedby", note.id);
  return element("div", { className: "parameter" }, label, input, note);
}

function field({ kind, choices, min, max }, value) {
  if (kind === "lines") return element("textarea", { rows: 1, placeholder: value });
  if (kind === "choice") {
    const options = choices.map((choice) => new Option(word(`effort_${choice}`), choice));
    return element("select", {}, new Option(value, ""), ...options);
  }
  return element("input", { type: "number", min, max, step: kind === "integer" ? 1 : "any", placeholder: value });
}

function fill({ system: prompt = "", sampling = {}, tools = [], response_schema: wanted, ...rest }) {
  others = rest;
  system.value = prompt;
  schema.value = wanted ? JSON.stringify(wanted, null, 2) : "";
  schemaWrong.hidden = true;
  for (const box of form.tools) box.checked = tools.includes(box.value);
  for (const { name, kind } of PARAMETERS) {
    const value = sampling[name] ?? "";
    byId(`parameter-${name}`).value = kind === "lines" ? [value].flat().join("\n") : value;
  }
}

// The settings in the form; undefined if the schema is not JSON.
function filled() {
  const sampling = {};
  for (const { name, kind } of PARAMETERS) {
    const text = byId(`parameter-${name}`).value;
    if (text === "") continue;
    sampling[name] = READ[kind](text);
  }
  const tools = [...form.tools].filter((box) => box.checked).map((box) => box.value);
  const wanted = parsedSchema();
  if (wanted === undefined) return undefined;
  return {
    ...others,
    ...(system.value.trim() && { system: system.value }),
    ...(Object.keys(sampling).length && { sampling }),
    ...(tools.length && { tools }),
    ...(wanted && { response_schema: wanted }),
  };
}

function parsedSchema() {
  if (!schema.value.trim()) return null;
  try {
    const value = JSON.parse(schema.value);
    if (value && typeof value === "object" && !Array.isArray(value)) return value;
  } catch {
    // said below
  }
  schemaWrong.hidden = false;
  schema.focus();
  return undefined;
}

function offerPresets() {
  list.replaceChildren(new Option(word("choose_preset"), ""), ...Object.keys(presets()).map((name) => new Option(name)));
}

list.addEventListener("change", () => {
  const preset = presets()[list.value];
  if (preset) fill({ ...others, ...preset });
  byId("preset-drop").hidden = !preset;
});
byId("preset-save").addEventListener("click", async () => {
  const settings = filled();
  if (!settings) return;
  const name = await askText("preset_name", list.value);
  if (!name) return;
  const { model, ...preset } = settings;
  save(name, preset);
  offerPresets();
  list.value = name;
});
byId("preset-drop").addEventListener("click", () => {
  drop(list.value);
  offerPresets();
  byId("preset-drop").hidden = true;
});
byId("settings-clear").addEventListener("click", () => fill({ ...others }));
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const settings = filled();
  if (!settings) return;
  dialog.close();
  await keep(settings);
});
