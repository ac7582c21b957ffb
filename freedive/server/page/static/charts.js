// The charts of the last minutes: which there are, and how they are drawn.

import { drawn, element } from "./dom.js";
import { bytes } from "./quantities.js";
import { number, word } from "./translations.js";

const WIDTH = 300;
const HEIGHT = 72;
const MINUTE_S = 60;

const count = (value) => (value === null ? "–" : number(value, value < 10 ? 1 : 0));
const percent = (value) => (value === null ? "–" : `${number(100 * value)}%`);
const size = (value) => (value === null ? "–" : bytes(value));
export const perSecond = (value) => (Number.isFinite(value) ? word("each_second", { count: count(value) }) : "–");

export function short(seconds) {
  if (seconds === undefined || seconds === null) return "–";
  if (seconds < 1) return word("milliseconds", { count: number(1000 * seconds, seconds < 0.01 ? 1 : 0) });
  return word("seconds", { count: number(seconds, seconds < 10 ? 2 : 1) });
}

const sum = (steps, of) => steps.reduce((all, step) => all + of(step), 0);
const mean = (steps, of) => {
  const known = steps.map(of).filter((value) => value !== null);
  return known.length ? known.reduce((all, value) => all + value, 0) / known.length : null;
};
const hits = ({ found, read }) => (found + read > 0 ? found / (found + read) : null);

// `of` is the value of a step, null if it has none. A line's figure is its newest value, or what `all` makes of all
// steps. `say` writes a value; `most` is the end of the scale, otherwise the largest value. What is `sparse` has values
// now and then, which become dots.
export const CHARTS = [
  { key: "tokens_written", say: perSecond, lines: [{ of: ({ written, seconds }) => written / seconds }] },
  { key: "tokens_read", say: perSecond, lines: [{ of: ({ read, seconds }) => read / seconds }] },
  {
    key: "requests",
    say: count,
    lines: [
      { key: "running", of: ({ running }) => running },
      { key: "waiting", of: ({ waiting }) => waiting },
    ],
  },
  { key: "first_token_s", say: short, sparse: true, lines: [{ of: ({ first }) => first }] },
  {
    key: "cache_pages",
    say: (value) => (value === null ? "–" : number(value)),
    most: (steps) => steps.at(-1)?.pages,
    lines: [
      { key: "pages_used", of: ({ used }) => used },
      { key: "pages_known", of: ({ known }) => known },
    ],
  },
  {
    key: "prefix_hits",
    say: percent,
    sparse: true,
    most: () => 1,
    lines: [
      { of: hits, all: (steps) => hits({ found: sum(steps, ({ found }) => found), read: sum(steps, ({ read }) => read) }) },
    ],
  },
  { key: "memory_used", say: size, most: (_, { total_bytes: all }) => all, lines: [{ of: ({ resident }) => resident }] },
  {
    key: "errors",
    say: count,
    lines: [
      { key: "errors_failed", of: ({ failed }) => failed, all: (steps) => sum(steps, ({ failed }) => failed) },
      { key: "errors_refused", of: ({ refused }) => refused, all: (steps) => sum(steps, ({ refused }) => refused) },
    ],
  },
];

// The figure of a line: its newest value, or for a table the mean.
export function headline({ of, all }, steps, isMean = false) {
  if (all) return all(steps);
  return isMean ? mean(steps, of) : (steps.map(of).findLast((value) => value !== null) ?? null);
}

// The steps of each minute, the newest first: [minutes ago, steps].
export function perMinute(steps, now) {
  const minutes = Map.groupBy(steps, ({ at }) => Math.floor((now - at) / MINUTE_S));
  return [...minutes].sort(([one], [other]) => one - other);
}

export function chart({ key, say, lines, most, sparse }, steps, window, server) {
  const figures = lines.map((line, index) => figure(line, say(headline(line, steps)), index));
  const top = Math.max(most?.(steps, server) ?? 0, ...lines.flatMap(({ of }) => steps.map(of)));
  const label = word("chart_says", { name: word(key), figures: figures.map(({ textContent }) => textContent).join(", "), most: say(top) });
  const picture = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  picture.append(drawn("path", { class: "axis", d: `M0,0H${WIDTH}M0,${HEIGHT}H${WIDTH}` }));
  const draw = sparse ? dots : line;
  lines.forEach(({ of }, index) => picture.append(...draw(points(steps, of, window, top || 1), index)));
  return element(
    "figure",
    {},
    element("h2", {}, word(key)),
    element("p", { className: "values" }, ...figures),
    element("span", { className: "top", ariaHidden: "true" }, say(top)),
    picture,
  );
}

function figure({ key }, text, index) {
  return element("span", { className: `value of-line-${index}` }, element("strong", {}, text), key ? ` ${word(key)}` : "");
}

// Points of the picture, "x,y", the newest moment at the right end.
function points(steps, of, window, top) {
  const now = steps.at(-1)?.at;
  const at = (step) => [WIDTH * (1 - (now - step.at) / window), HEIGHT * (1 - of(step) / top)];
  return steps.filter((step) => of(step) !== null).map((step) => at(step).map((part) => part.toFixed(1)).join());
}

const dots = (places) => [drawn("path", { class: "dots", d: places.map((place) => `M${place}h0`).join("") })];

function line(places, index) {
  if (!places.length) return [];
  const path = drawn("path", { class: `line line-${index}`, d: `M${places.join("L")}` });
  const [first] = places[0].split(",");
  const area = drawn("path", { class: "area", d: `M${first},${HEIGHT}L${places.join("L")}V${HEIGHT}Z` });
  return index ? [path] : [area, path];
}
