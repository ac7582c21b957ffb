// The page of statistics: asks for what is new while it is in view, and shows it.

import { away, Away, get, Refused } from "./api.js";
import { CHARTS, chart, headline, perSecond, perMinute, short } from "./charts.js";
import { byId, element } from "./dom.js";
import "./looks.js";
import { bytes, duration } from "./quantities.js";
import { share, stepsOf } from "./steps.js";
import { number, word } from "./translations.js";

const REPORT_EVERY = 5; // refreshes
const RECENT = 5; // steps that a model's speed is the average of
const LEAST_S = 60; // of the time that charts show
const LATENCIES = ["queue_s", "first_token_s", "token_s", "request_s"];
const PERCENTILES = ["p50", "p90", "p99"];
const pause = byId("pause");

let samples = [];
let server = {}; // what comes with the samples
let report = {}; // /v1/stats
let refreshes = 0; // since the report was asked for
let timer = 0;

const isPaused = () => pause.getAttribute("aria-pressed") === "true";

async function run() {
  clearTimeout(timer);
  if (document.hidden || isPaused()) return;
  try {
    await refresh();
  } catch (error) {
    if (error.status === 403) return refuse();
    if (!(error instanceof Away || error instanceof Refused)) throw error; // a fault of this page
  }
  clearTimeout(timer);
  timer = setTimeout(run, 1000 * (server.every_s ?? 2));
}

function refuse() {
  byId("refused").hidden = false;
  byId("figures").hidden = true;
  document.documentElement.classList.add("ready");
}

async function refresh() {
  const newest = samples.at(-1)?.number ?? 0;
  const { samples: more, ...rest } = await get(`/app/stats?after=${newest}`);
  const isSame = rest.started_at === server.started_at;
  server = rest;
  samples = isSame ? [...samples, ...more.filter((each) => each.number > newest)].slice(-rest.num_samples) : more;
  if (!samples.length) return; // another server has begun, and is asked for all of them next
  if (!report.models || refreshes++ === REPORT_EVERY) {
    report = await get("/v1/stats");
    refreshes = 1;
  }
  show();
}

function show() {
  const steps = stepsOf(samples);
  const window = Math.max(samples.at(-1).at_s - samples[0].at_s, LEAST_S);
  byId("up").textContent = word("up_for", { time: duration(report.uptime_s), version: report.version });
  renew(byId("charts"), CHARTS.map((each) => chart(each, steps, window, server)));
  byId("note").textContent = word("stats_note", { time: duration(window) });
  showTroubles(Object.entries(server.troubles));
  fill("minutes", ["minutes_ago", ...columns().map(([name]) => name)], perMinute(steps, samples.at(-1)?.at_s).map(minuteRow));
  showModels(steps);
  fill("latencies", ["latency", "p50", "p90", "p99"], LATENCIES.map((name) => [word(name), ...PERCENTILES.map((part) => short(report.latencies[name][part]))]));
  fill("callers", ["caller", "requests", "prompt_tokens", "tokens_written"], Object.entries(report.callers).map(callerRow));
  byId("figures").hidden = false;
  document.documentElement.classList.add("ready");
}

function showTroubles(troubles) {
  byId("troubles").hidden = !troubles.length;
  byId("troubles").replaceChildren(...troubles.map(([name, why]) => element("li", {}, `${name}: ${why}`)));
}

// The lines of all charts: name, and how to write the value of some steps.
const columns = () =>
  CHARTS.flatMap(({ key, say, lines }) =>
    lines.map((line) => [[key, line.key].filter(Boolean), (steps) => say(headline(line, steps, true))]),
  );

const minuteRow = ([minute, steps]) => [
  `${minute}–${minute + 1}`,
  ...columns().map(([, say]) => say(steps)),
];

const callerRow = ([name, { requests, prompt_tokens: read, generated_tokens: written }]) => [
  name || word("no_key"),
  number(requests ?? 0),
  number(read ?? 0),
  number(written ?? 0),
];

function showModels(steps) {
  const names = Object.keys(samples.at(-1)?.models ?? {});
  const rows = names.map((name) => modelRow(name, stepsOf(samples.slice(-1 - RECENT), name), samples.at(-1).models[name]));
  fill("of-models", ["model", "memory_used", "running", "waiting", "tokens_written", "tokens_read", "cache_pages", "prefix_hits", "card_experts"], rows);
}

function modelRow(name, steps, now) {
  const { bytes: size, experts_on_disk: experts } = report.models[name] ?? {};
  const rate = (of) => perSecond(steps.reduce((sum, step) => sum + step[of], 0) / steps.reduce((sum, { seconds }) => sum + seconds, 0));
  return [
    name,
    size ? bytes(size) : "–",
    number(now.running),
    number(now.waiting),
    rate("written"),
    rate("read"),
    word("of_pages", { used: number(now.num_pages - now.free_pages), all: number(now.num_pages) }),
    share(now.num_cached + now.num_restored, now.num_read),
    experts ? word("experts_found", { share: share(experts.hits, experts.misses) }) : "–",
  ];
}

// Fills a table: keys of its columns (several for a longer name), and rows of texts, the first of which names the row.
function fill(id, keys, rows) {
  const head = keys.map((key) => element("th", { scope: "col" }, [key].flat().map((each) => word(each)).join(", ")));
  const body = rows.map(([name, ...cells]) =>
    element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((text) => element("td", {}, text))),
  );
  const empty = element("tr", {}, element("td", { colSpan: keys.length }, word("nothing_yet")));
  const table = byId(id);
  if (!table.tBodies.length) table.append(element("thead"), element("tbody"));
  renew(table.tHead, [element("tr", {}, ...head)]);
  renew(table.tBodies[0], body.length ? body : [empty]);
}

// Replaces the children that change: what a reader has marked or listens to stays.
function renew(parent, nodes) {
  const before = [...parent.children];
  before.slice(nodes.length).forEach((node) => node.remove());
  nodes.forEach((node, index) => {
    if (!before[index]) parent.append(node);
    else if (!before[index].isEqualNode(node)) before[index].replaceWith(node);
  });
}

pause.addEventListener("click", () => {
  pause.setAttribute("aria-pressed", !isPaused());
  run();
});
document.addEventListener("visibilitychange", run);
away.addEventListener("away", () => (byId("away").hidden = false));
away.addEventListener("back", () => (byId("away").hidden = true));
run();
