// The expert map: which experts each token of a growing answer wakes, and what else was likely. The server is asked for
// it only while the panel is open and the page is in view.

import { events, Refused } from "./api.js";
import { byId, element, iconButton } from "./dom.js";
import { Balance, unpacked } from "./expert-balance.js";
import { ExpertMap } from "./expert-map.js";
import { remember } from "./looks.js";
import { percent, TokenStrip, visible } from "./token-strip.js";
import { number, word } from "./translations.js";

const RETRY_MS = 1000;

const [panel, hint, figures, pointed, runners, layers, scroller] = [
  "experts", "experts-hint", "experts-figures", "experts-pointed", "runners", "layers", "scroller",
].map(byId);

const map = new ExpertMap(byId("expert-map"));
const strip = new TokenStrip(byId("token-strip"), (token) => {
  map.choose(token);
  showRunners(token ?? newest);
});

let answer = null; // { path, signal } of the newest answer that grows
let reading = null; // ends the request, while there is one
let shown = null; // the path of the answer that is shown
let balance = null;
let newest = null;

// The button of an answer that opens and closes the panel.
export function expertsButton() {
  const button = iconButton("experts", "experts", () => toggleExperts());
  button.setAttribute("aria-pressed", !panel.hidden);
  button.setAttribute("aria-controls", panel.id);
  return button;
}

export function toggleExperts() {
  keepingEnd(() => (panel.hidden = !panel.hidden));
  remember("experts", panel.hidden ? "closed" : "open");
  for (const button of document.querySelectorAll("button.experts")) button.setAttribute("aria-pressed", !panel.hidden);
  look();
}

// Changes the height of the panel; what stands above it goes on to end with the same line.
function keepingEnd(change) {
  const end = scroller.scrollTop + scroller.clientHeight;
  change();
  scroller.scrollTop = end - scroller.clientHeight;
}

// Follows the answer whose experts are at `path`, until `signal`.
export function followExperts(path, signal) {
  reading?.abort();
  answer = { path, signal };
  signal.addEventListener("abort", () => endOf(path));
  look();
}

// The answer has ended, or the reader has left it; what was seen of it stays.
function endOf(path) {
  if (answer?.path !== path) return;
  answer = null;
  look();
}

function look() {
  const isSeen = answer && !panel.hidden && !document.hidden;
  if (!isSeen) reading?.abort();
  else if (!reading || reading.signal.aborted) read(answer);
}

async function read({ path }) {
  const control = new AbortController();
  reading = control;
  try {
    for await (const event of events(path, control.signal)) {
      if (control.signal.aborted) return;
      if (event.model) begin(path, event.model);
      else if (event.tokens) add(event.tokens);
      else return endOf(path);
    }
  } catch (error) {
    if (control.signal.aborted) return;
    if (error instanceof Refused) return endOf(path);
    setTimeout(look, RETRY_MS);
  } finally {
    control.abort();
  }
}

function begin(path, { experts, on_disk: onDisk }) {
  if (path === shown) return;
  shown = path;
  newest = null;
  balance = new Balance(experts);
  balance.onDisk = onDisk;
  strip.clear();
  layers.replaceChildren();
  runners.replaceChildren();
  keepingEnd(() => panel.classList.add("begun"));
  panel.classList.toggle("dense", !experts.length);
  hint.textContent = experts.length ? "" : word("experts_dense");
  if (experts.length) map.show(balance);
}

function add(tokens) {
  const news = tokens.map((token) => unpacked(token, balance.uses.length));
  for (const token of news) {
    balance.add(token);
    if (balance.uses.length) map.wake(token);
  }
  newest = news.at(-1);
  strip.add(news);
  if (!map.chosen) showRunners(newest);
  showFigures();
  map.draw();
}

function showFigures() {
  if (!balance.uses.length) return;
  const { skew, unused } = balance.mean;
  const sizes = balance.uses.map((uses) => uses.length);
  const parts = [
    word("experts_shape", { layers: number(sizes.length), experts: number(Math.max(...sizes)) }),
    word("experts_balance", { skew: number(skew, 1), unused: percent(unused) }),
  ];
  if (balance.onDisk) {
    parts.push(word("experts_disk", { missed: number(balance.missed), all: number(balance.chosen) }));
  }
  figures.textContent = parts.join(" · ");
  map.canvas.setAttribute("aria-label", figures.textContent);
  if (layers.closest("details").open) showLayers();
}

function showLayers() {
  if (!balance) return;
  const rows = balance.uses.map((_, index) => {
    const { skew, unused, missed } = balance.layer(index);
    const cells = [index + 1, `${number(skew, 1)} ×`, percent(unused), balance.onDisk ? number(missed) : "–"];
    return element("tr", {}, ...cells.map((cell) => element("td", {}, String(cell))));
  });
  layers.replaceChildren(...rows);
}

function showRunners(token) {
  const rows = (token?.top ?? []).map(([text, p]) => {
    const bar = element("progress", { max: 1, value: p });
    bar.setAttribute("aria-hidden", "true");
    return element("li", { className: text === token.text ? "taken" : "" }, element("span", {}, visible(text)), bar, percent(p));
  });
  runners.replaceChildren(...rows);
}

function showPointed(event) {
  const place = map.at(event);
  const values = place && { layer: place.layer + 1, expert: place.expert + 1, uses: number(balance.uses[place.layer][place.expert]) };
  pointed.textContent = values ? word("experts_pointed", values) : "";
}

map.canvas.addEventListener("pointermove", showPointed);
map.canvas.addEventListener("pointerleave", () => (pointed.textContent = ""));
layers.closest("details").addEventListener("toggle", showLayers);
document.addEventListener("visibilitychange", look);
byId("experts-close").addEventListener("click", toggleExperts);
