// The dialog of fine-tuning: a file and a model, what it will take, how it goes, and what came of it.

import { Away, events, get, post, remove } from "./api.js";
import { drawCurve } from "./curve.js";
import { byId, element, textButton } from "./dom.js";
import { base64 } from "./files.js";
import { offerModels, useModel } from "./models.js";
import { bytes, duration } from "./quantities.js";
import { toast } from "./toast.js";
import { number, word } from "./translations.js";

const ROOT = "/app/finetunes";
const SCHEME = "tuned:";
const MAX_BYTES = 16 << 20;
const RETRY_MS = 1000;
const [dialog, form, dropZone, chosen, picker, model, name, epochs, rank, rate, plan, wrong] = [
  "", "-form", "-drop", "-chosen", "-file", "-model", "-name", "-epochs", "-rank", "-rate", "-plan", "-wrong",
].map((part) => byId(`finetune${part}`));
const [section, what, work, figure, sample, failed, buttons] = [
  "-run", "-what", "-work", "-curve", "-sample", "-failed", "-buttons",
].map((part) => byId(`finetune${part}`));
const start = form.querySelector("[type=submit]");

let file = null;
let asked = null; // the AbortController of the newest estimate
let control = null;
let shown = null; // the name of the fine-tuned model that is shown, or null for the form
let offered = "";
let newest = { runs: [], tuned: [] }; // the event that came last

// Shows the form for a base model, or what is or was made under the name `result`.
export async function openFinetune(names, base, result = null) {
  model.replaceChildren(...names.map((each) => new Option(each)));
  dialog.showModal();
  control = new AbortController();
  show(result);
  form.reset();
  model.value = base || names[0];
  choose(null);
  await watch(control.signal);
}

async function watch(signal) {
  while (!signal.aborted) {
    try {
      if (!shown) wrong.textContent = (await get(ROOT)).missing;
      for await (const now of events(`${ROOT}/events`, signal)) await take(now);
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Away || error instanceof TypeError)) return toast(error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

async function take(now) {
  newest = now;
  const { runs } = now;
  if (!shown) return;
  const run = runs.find((each) => each.name === shown);
  if (run) return draw(run);
  const made = (await get(ROOT)).tuned.find((each) => each.name === shown);
  if (made) draw({ ...made, state: "done", error: "" });
  else show(null);
}

function show(result) {
  shown = result;
  offered = "";
  form.hidden = result !== null;
  section.hidden = result === null;
  for (const node of [what, figure, sample, failed, buttons]) node.replaceChildren();
}

function draw(run) {
  const { state, error, curve } = run;
  what.textContent = word("tuned_from", { name: run.name, base: run.base, file: run.file });
  work.hidden = state === "done" || state === "failed";
  if (!work.hidden) drawWork(run);
  drawCurve(figure, curve);
  drawSample(run.sample);
  failed.textContent = error;
  offer(state, run);
}

function drawWork({ state, total, completed, left_s: left }) {
  const [bar, said] = work.children;
  if (total) Object.assign(bar, { max: total, value: completed });
  else bar.removeAttribute("value");
  const texts = [word(total && completed === total ? "writing_model" : `finetune_${state}`)];
  if (total) texts.push(word("of_steps", { done: number(completed), all: number(total) }));
  if (left) texts.push(word("time_left", { time: duration(left) }));
  said.textContent = texts.join(" · ");
}

function drawSample(answers) {
  const parts = ["question", "expected", "before", "after"].filter((key) => answers[key] !== undefined);
  sample.replaceChildren(...parts.flatMap((key) => pair(`sample_${key}`, answers[key] || "–")));
}

const pair = (key, text) => [element("dt", {}, word(key)), element("dd", {}, text)];

const ACTS = {
  done: { undo_finetune: undo, keep_finetune: () => dialog.close(), try_finetune: tryIt },
  failed: { back: end },
  running: { cancel: end },
  waiting: { cancel: end },
};

function offer(state, run) {
  if (offered === `${state} ${run.name}`) return;
  offered = `${state} ${run.name}`;
  const keys = Object.keys(ACTS[state]);
  buttons.replaceChildren(...keys.map((key, index) => {
    const act = ({ currentTarget }) => attempt(currentTarget, () => ACTS[state][key](run));
    return textButton(key, act, index === keys.length - 1 && state === "done" ? "primary" : "");
  }));
}

async function attempt(button, act) {
  button.disabled = true;
  try {
    await act();
  } catch (error) {
    toast(error.message);
  } finally {
    button.disabled = false;
  }
}

async function undo({ name: made }) {
  await post(`${ROOT}/undo`, { model: made });
  show(null);
  choose(file);
}

async function end({ id }) {
  await remove(`/app/library/jobs/${id}`);
  show(null);
  choose(file);
}

async function tryIt({ name: made }) {
  await offerModels();
  useModel(made);
  dialog.close();
  byId("library").close();
}

function choose(next) {
  file = next;
  start.disabled = true;
  chosen.textContent = file?.name ?? word("finetune_drop");
  if (file && !name.value) name.value = file.name.replace(/\.\w+$/, "").replace(/[^\w.-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 64) || "model";
  estimate();
}

// The body of both requests.
async function body() {
  const given = { model: model.value, name: name.value, file: file.name, base64: await base64(file) };
  for (const [key, field] of Object.entries({ epochs, rank, learning_rate: rate })) if (field.value) given[key] = Number(field.value);
  return given;
}

// Asks what the file and the settings would take, whenever they have changed. Nothing moves or is disabled until the
// answer comes: the click on the button is what ends the change of a field.
async function estimate() {
  asked?.abort();
  asked = new AbortController();
  const { signal } = asked;
  if (!file) return plan.replaceChildren();
  try {
    if (file.size > MAX_BYTES) throw new Error(word("too_large_data", { name: file.name }));
    if (start.disabled) plan.textContent = word("finetune_reading");
    const found = await post(`${ROOT}/estimate`, await body(), signal);
    if (signal.aborted) return;
    plan.replaceChildren(element("dl", {}, ...facts(found).flatMap(([key, text]) => pair(key, text))));
    wrong.textContent = "";
    start.disabled = false;
  } catch (error) {
    if (signal.aborted) return;
    start.disabled = true;
    plan.replaceChildren();
    wrong.textContent = error.message;
  }
}

function facts({ examples, held_out: heldOut, tokens, learned, cut, context, epochs: count, steps, seconds, memory_bytes: memory, free_bytes: free, disk_bytes: disk }) {
  return [
    ["plan_examples", word("plan_held_out", { examples: number(examples), held_out: number(heldOut) })],
    ["plan_tokens", word("plan_learned", { tokens: number(tokens), learned: number(learned) })],
    cut && ["plan_cut", word("plan_longer", { cut: number(cut), context: number(context) })],
    ["plan_steps", word("plan_epochs", { steps: number(steps), epochs: number(count, 1) })],
    ["plan_time", word("plan_about", { time: duration(seconds) })],
    ["plan_memory", word("plan_sizes", { memory: bytes(memory), free: bytes(free), disk: bytes(disk) })],
  ].filter(Boolean);
}

form.addEventListener("change", ({ target }) => {
  if (target === picker) return picker.files.length && choose(picker.files[0]);
  if (target !== name || wrong.textContent) estimate();
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (start.disabled) return;
  attempt(start, async () => {
    const run = await post(ROOT, await body());
    show(run.name);
    const isKnown = newest.tuned.includes(run.name) || newest.runs.some(({ id }) => id === run.id);
    if (isKnown) await take(newest); // its events may come before the answer
    else draw(run);
  });
});

// A file that is dropped anywhere on the dialog is for it, not for the conversation below.
for (const type of ["dragover", "dragleave", "drop"]) {
  dialog.addEventListener(type, (event) => {
    event.preventDefault();
    event.stopPropagation();
    dropZone.classList.toggle("over", type === "dragover");
    if (type === "drop" && !shown && event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  });
}

dialog.addEventListener("close", () => {
  control.abort();
  asked?.abort();
});

export const isTuned = (each) => each.startsWith(SCHEME);

// Whether this server fine-tunes, and of each model that it made, what it came from.
export async function readTuned() {
  const { offered: tunes, tuned } = await get(ROOT);
  const origin = ({ base, file: from, date }) => word("tuned_on", { base, file: from, date: day(date) });
  return { tunes, origins: new Map(tuned.map((made) => [made.name, origin(made)])) };
}

const day = (date) => new Date(date).toLocaleDateString(document.documentElement.lang);
