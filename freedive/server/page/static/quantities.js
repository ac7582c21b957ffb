// Sizes and durations in the reader's language.

import { number, word } from "./translations.js";

const UNITS = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]];

// Decimal units, as disks and hubs have them.
export function bytes(size) {
  const [unit, name] = UNITS.find(([least]) => size >= least) ?? [1e3, "kB"];
  const value = size / unit;
  return `${number(value, value < 100 ? 1 : 0)} ${name}`;
}

export function duration(seconds) {
  if (seconds < 60) return word("seconds", { count: number(seconds, seconds < 10 ? 1 : 0) });
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return word("minutes", { count: minutes });
  return word("hours", { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
}
