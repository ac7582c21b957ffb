// The models of this machine and of the catalogue: what fits, what is loaded, and the work that the server does on them.

import { Away, events, get, post, remove } from "./api.js";
import { showCard } from "./card.js";
import { byId, element, icon, textButton } from "./dom.js";
import { isTuned, openFinetune, readTuned } from "./finetune.js";
import { openMenu } from "./menu.js";
import { chosenModel, showStates, useModel } from "./models.js";
import { bytes, duration } from "./quantities.js";
import { toast } from "./toast.js";
import { number, word } from "./translations.js";

const ROOT = "/app/library";
const RETRY_MS = 1000;
const [dialog, list, field, space, nothing] = [
  "library", "library-list", "library-search", "library-space", "library-nothing",
].map(byId);

// In the order in which they stand; the first one that fits is a model's.
const GROUPS = [
  { key: "models_served", has: ({ served }) => served },
  { key: "models_here", has: ({ bytes_here: here }) => here },
  { key: "models_begun", has: ({ partial_bytes: part }, job) => part || job },
  { key: "models_fit", has: ({ runs, fits }) => runs && fits },
  { key: "models_paged", has: ({ runs, paged }) => runs && paged },
  { key: "models_large", has: ({ runs }) => runs },
];

let models = [];
let may = [];
let formats = [];
let tunes = false; // whether this server fine-tunes models
let origins = new Map(); // of fine-tuned models
let jobs = new Map(); // by the name of the model
let rows = new Map();
let control = null;

export async function openLibrary() {
  dialog.showModal();
  field.value = "";
  control = new AbortController();
  await watch(control.signal);
}

// Shows what happens until the dialog is closed.
async function watch(signal) {
  while (!signal.aborted) {
    try {
      await reload();
      for await (const { states, jobs: now } of events(`${ROOT}/events`, signal)) await take(states, now);
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Away || error instanceof TypeError)) return toast(error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

async function reload() {
  const whole = await get(ROOT);
  ({ models, may } = whole);
  formats = whole.formats ?? [];
  if (may.includes("files")) ({ tunes, origins } = await readTuned());
  space.textContent = whole.free_bytes === undefined ? "" : word("disk_free", { size: bytes(whole.free_bytes) });
  draw();
}

async function take(states, now) {
  const before = jobs;
  jobs = new Map(now.map((job) => [job.model, job]));
  showStates(states);
  const served = models.filter((model) => model.served).map(({ name }) => name);
  const isNew = Object.keys(states).join("\n") !== served.join("\n");
  if (isNew || endings(before) !== endings(jobs)) await reload();
  for (const model of models) if (model.served) model.state = states[model.name] ?? model.state;
  draw();
}

// What changes when a job begins, ends or fails, and with it what is on the disk.
const endings = (each) => [...each.values()].map(({ id, error }) => `${id} ${error}`).join();

function draw() {
  const wanted = field.value.trim().toLowerCase();
  const shown = models.filter(({ name, about = "" }) => `${name} ${about}`.toLowerCase().includes(wanted));
  const parts = GROUPS.map(({ key }) => [key, []]);
  for (const model of shown) {
    const place = GROUPS.findIndex(({ has }) => has(model, jobs.get(model.name)));
    if (place >= 0) parts[place][1].push(model);
  }
  const nodes = parts.filter(([, group]) => group.length).flatMap(([key, group]) => [
    heading(key),
    ...group.map((model) => row(model).show(model, jobs.get(model.name))),
  ]);
  const focused = document.activeElement;
  if (nodes.length !== list.children.length || nodes.some((node, index) => node !== list.children[index])) {
    list.replaceChildren(...nodes);
    if (list.contains(focused)) focused.focus();
  }
  nothing.hidden = nodes.length > 0;
}

const headings = new Map();

function heading(key) {
  if (!headings.has(key)) headings.set(key, element("h3", {}, word(key)));
  return headings.get(key);
}

function row({ name }) {
  if (!rows.has(name)) rows.set(name, new Row(name));
  return rows.get(name);
}

// One model. Its buttons are replaced only when others are offered, so that progress takes no focus.
class Row {
  #offered = "";
  #wasPressed = false;

  constructor(name) {
    this.name = name;
    this.state = element("span", { className: "state" });
    this.facts = element("p", { className: "facts" });
    this.about = element("p");
    this.error = element("p", { className: "wrong" });
    this.error.setAttribute("role", "alert");
    this.bar = element("progress");
    this.bar.setAttribute("aria-label", name);
    this.progress = element("span");
    this.work = element("div", { className: "work" }, this.bar, this.progress);
    this.buttons = element("div", { className: "buttons" });
    const head = element("div", { className: "model-head" }, element("strong", {}, name), this.state);
    this.card = element("details", { className: "card" }, element("summary", {}, icon("right"), word("will_it_fit")));
    this.card.addEventListener("toggle", () => this.card.open && this.#openCard());
    this.node = element("article", { className: "model" }, head, this.about, this.facts, this.error, this.work, this.card, this.buttons);
    this.node.setAttribute("aria-label", name);
  }

  show(model, job) {
    this.model = model;
    this.state.textContent = model.served ? word(`state_${model.state}`) : "";
    this.state.dataset.state = model.state ?? "";
    this.about.textContent = origins.get(model.name) ?? model.about;
    this.about.hidden = !this.about.textContent;
    this.facts.textContent = factsOf(model).join(" · ");
    this.error.textContent = job?.error ?? "";
    this.error.hidden = !job?.error;
    this.#showWork(job?.error ? null : job);
    this.#offer(job);
    return this.node;
  }

  // Of a job, or of a download that nobody goes on with.
  #showWork(job) {
    const { partial_bytes: part = 0, download_bytes: all = 0 } = this.model;
    this.work.hidden = !job && !part;
    if (this.work.hidden) return;
    const { total, completed, bytes_per_s: speed, left_s: left } = job ?? { total: all, completed: part };
    if (total) Object.assign(this.bar, { max: total, value: Math.min(completed, total) });
    else this.bar.removeAttribute("value");
    const texts = [word(job ? `${job.kind}_${job.state}` : "paused", { format: job?.format })];
    if (job?.kind === "finetune") texts.push(word("of_steps", { done: number(completed), all: number(total) }));
    else if (completed) texts.push(total ? word("of_bytes", { done: bytes(completed), all: bytes(total) }) : bytes(completed));
    if (speed && job.kind !== "finetune") texts.push(word("per_second", { size: bytes(speed) }));
    if (left) texts.push(word("time_left", { time: duration(left) }));
    this.progress.textContent = texts.join(" · ");
  }

  #offer(job) {
    const offers = offersFor(this.model, job);
    const key = offers.map((offer) => offer.key).join();
    if (key === this.#offered) return;
    this.#offered = key;
    this.buttons.replaceChildren(
      ...offers.map((offer) => textButton(offer.key, ({ currentTarget }) => this.#act(currentTarget, offer), offer.look)),
    );
    if (this.#wasPressed) this.buttons.firstChild?.focus();
    this.#wasPressed = false;
  }

  // The job and the model are those of the moment of the click.
  async #act(button, { act }) {
    button.disabled = true;
    this.#wasPressed = true; // so the model stays in view, wherever it stands then
    try {
      await act(this.model, jobs.get(this.name), button);
    } catch (error) {
      toast(error.message);
      this.#wasPressed = false;
    } finally {
      button.disabled = false;
    }
  }

  async #openCard() {
    if (this.filled) return;
    this.filled = true;
    const body = element("div", { className: "card-body" }, word("predicting"));
    this.card.append(body);
    try {
      showCard(body, await get(`${ROOT}/card?model=${encodeURIComponent(this.name)}`), this.model);
    } catch (error) {
      body.textContent = error.message;
      this.filled = false;
      this.card.addEventListener("toggle", () => body.remove(), { once: true });
    }
  }
}

function factsOf({ parameters, bytes_here: here, download_bytes: download, memory_bytes: memory, fits, paged, licence }) {
  return [
    parameters,
    here ? word("on_disk", { size: bytes(here) }) : download && word("to_download", { size: bytes(download) }),
    memory && word(fits ? "needs_memory" : paged ? "needs_paging" : "needs_too_much", { size: bytes(memory) }),
    licence,
  ].filter(Boolean);
}

const OFFERS = {
  choose: { key: "use_model", look: "primary", act: ({ name }) => (useModel(name), dialog.close()) },
  load: { key: "load_model", act: ({ name }) => post(`${ROOT}/load`, { model: name }) },
  unload: { key: "unload_model", act: ({ name }) => post(`${ROOT}/unload`, { model: name }) },
  serve: { key: "serve_model", act: ({ name }) => post(`${ROOT}/downloads`, { model: name }) },
  download: { key: "download", act: ({ name }) => post(`${ROOT}/downloads`, { model: name }) },
  resume: { key: "resume_download", act: ({ name }) => post(`${ROOT}/downloads`, { model: name }) },
  pause: { key: "pause", act: (model, job) => end(post(`${ROOT}/jobs/${job.id}/stop`)) },
  cancel: { key: "cancel", act: (model, job) => end(remove(`${ROOT}/jobs/${job.id}`)) },
  discard: { key: "discard", act: ({ name }) => end(post(`${ROOT}/discard`, { model: name })) },
  quantize: { key: "quantize", act: chooseFormat },
  finetune: { key: "tune_model", act: ({ name }, job, button) => finetune(button, name) },
  watch: { key: "finetune_watch", act: ({ name }, job, button) => finetune(button, name, `tuned:${job.format}`) },
  result: { key: "finetune_result", act: ({ name }, job, button) => finetune(button, "", name) },
  remove: { key: "remove_model", act: askToRemove },
};

// What the reader may do with a model now.
function offersFor({ name, served, state, bytes_here: here, partial_bytes: part, removable, runs }, job) {
  const [pulls, manages, files] = ["pull", "manage", "files"].map((right) => may.includes(right));
  const working = job && !job.error;
  const found = [];
  if (served && name !== chosenModel()) found.push("choose");
  if (served && state === "asleep") found.push("load");
  if (served && state === "loaded" && manages) found.push("unload");
  if (working && job.kind === "download" && pulls) found.push("pause", "cancel");
  if (working && job.kind === "quantize" && files) found.push("cancel");
  if (job?.kind === "finetune" && files) found.push("watch");
  if (!working && pulls && !served && here) found.push("serve");
  if (!working && pulls && !served && !here && runs) found.push(part ? "resume" : "download");
  if (!working && pulls && part) found.push("discard");
  if (!working && files && served && formats.length && !isQuantized(name)) found.push("quantize");
  if (!working && files && served && tunes && !isQuantized(name)) found.push("finetune");
  if (files && isTuned(name)) found.push("result");
  if (!working && files && removable && state !== "loaded") found.push("remove");
  return found.map((each) => OFFERS[each]);
}

const isQuantized = (name) => name.startsWith("quantized:");

function finetune(button, base, result) {
  button.disabled = false; // the dialog gives the focus back to it
  const bases = models.filter(({ name, served }) => served && !isQuantized(name));
  openFinetune(bases.map(({ name }) => name), base, result);
}

// What was stopped or removed is read again: no event tells what is on the disk.
const end = (asked) => asked.then(reload);

function chooseFormat({ name }, job, button) {
  const items = formats.map((format) => ({
    icon: "file",
    text: `${format}: ${word(`format_${format}`)}`,
    act: () => post(`${ROOT}/quantized`, { model: name, format }).catch((error) => toast(error.message)),
  }));
  button.disabled = false; // the menu takes the focus back to it
  openMenu(button, items, dialog);
}

const confirmation = byId("confirm");

function askToRemove({ name, bytes_here: here }) {
  byId("confirm-text").textContent = word("remove_sure", { name, size: bytes(here) });
  confirmation.showModal();
  confirmation.querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    confirmation.close();
    end(post(`${ROOT}/remove`, { model: name })).catch((error) => toast(error.message));
  };
}

field.addEventListener("input", draw);
dialog.addEventListener("close", () => control.abort());
