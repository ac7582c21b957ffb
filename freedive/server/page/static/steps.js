// What happened between each two samples of the server.

import { number } from "./translations.js";

// Steps of all models, or of the one with this name.
export function stepsOf(samples, name) {
  return samples.slice(1).map((now, index) => step(samples[index], now, name));
}

function step(before, now, name) {
  const names = name === undefined ? Object.keys(now.models) : [name];
  const sum = (field) => names.reduce((all, each) => all + (now.models[each]?.[field] ?? 0), 0);
  const rise = (field) => names.reduce((all, each) => all + grown(before.models[each]?.[field], now.models[each]?.[field]), 0);
  return {
    at: now.at_s,
    seconds: now.at_s - before.at_s,
    written: rise("num_generated"),
    read: rise("num_read"),
    found: rise("num_cached") + rise("num_restored"),
    running: sum("running"),
    waiting: sum("waiting"),
    used: sum("num_pages") - sum("free_pages"),
    known: sum("known_pages"),
    pages: sum("num_pages"),
    resident: now.resident_bytes,
    first: now.first_token_s,
    failed: now.failed - before.failed,
    refused: now.refused - before.refused,
  };
}

// A counter begins again when its model is loaded again.
const grown = (before = 0, now = 0) => (now < before ? now : now - before);

// The part that `found` is of both, in percent.
export const share = (found, missed) => (found + missed > 0 ? `${number((100 * found) / (found + missed))}%` : "–");
