// The card of a model: what `freedive plan` predicts of it on this machine.

import { element } from "./dom.js";
import { bytes, duration } from "./quantities.js";
import { number, word } from "./translations.js";

const PARTS = ["dense", "slots", "cache", "states", "working", "process"]; // of the memory

export function showCard(body, card, model) {
  const facts = element("dl", {}, ...entries(card, model).flatMap(([key, text]) => pair(key, text)));
  body.replaceChildren(verdict(card), ...(card.memory ? [memory(card.memory)] : []), facts);
  if (card.problem) body.append(element("p", {}, word("only_estimated", { why: card.problem })));
}

function verdict({ memory: plan, paged, speed }) {
  const key = !speed ? "fits_not" : (plan?.paged ?? paged) ? "fits_paged" : "fits_whole";
  return element("p", { className: `verdict ${key}` }, word(key));
}

// The memory by part, as a bar and in words.
function memory(plan) {
  const bar = element("div", { className: "parts" });
  const names = element("ul", { className: "legend" });
  for (const part of PARTS.filter((each) => plan[each])) {
    const piece = element("span");
    piece.dataset.part = part;
    piece.style.flexGrow = plan[part];
    bar.append(piece);
    const sample = element("span");
    sample.dataset.part = part;
    names.append(element("li", {}, sample, `${word(`part_${part}`)} ${bytes(plan[part])}`));
  }
  const rest = element("span");
  rest.style.flexGrow = Math.max(0, plan.budget - plan.total);
  bar.append(rest);
  bar.setAttribute("aria-hidden", "true");
  const title = word("memory_of", { total: bytes(plan.total), budget: bytes(plan.budget) });
  return element("div", { className: "memory" }, element("p", {}, title), bar, names);
}

function entries({ memory: plan, speed, download_bytes: download, cache_bytes_per_token: kept }, { licence, bytes_here: here }) {
  const found = [];
  if (speed) {
    found.push(["card_speed", word("speed", { speed: range(speed.worst, speed.usual) })]);
    const firsts = Object.entries(speed.first_token_s);
    found.push(["card_first", firsts.map(([count, seconds]) => word("first_after", { count: number(Number(count)), time: duration(seconds) })).join(", ")]);
  }
  if (plan?.paged) found.push(["card_experts", word("experts_in_memory", { share: number((100 * plan.slots) / plan.experts) })]);
  if (kept) found.push(["card_kept", bytes(1000 * kept)]);
  if (!here && download) found.push(["card_disk", bytes(download)]);
  if (licence) found.push(["card_licence", licence]);
  return found;
}

// From uniform routing, the worst case, to usual text.
function range(worst, usual) {
  const [low, high] = [worst, usual].map((speed) => number(speed, speed < 10 ? 1 : 0));
  return low === high ? low : `${low}–${high}`;
}

const pair = (key, text) => [element("dt", {}, word(key)), element("dd", {}, text)];
