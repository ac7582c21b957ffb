// The figures of an answer: while it is waited for, and when it is there.

import { element } from "./dom.js";
import { number, word } from "./translations.js";

// One line about an answer; "" if nothing is known of it.
export function meterText(meter) {
  if (!meter?.tokens_per_s) return "";
  const parts = [
    word("speed", { speed: number(meter.tokens_per_s, meter.tokens_per_s < 10 ? 1 : 0) }),
    word("first_token", { seconds: number(meter.first_token_s ?? 0, 2) }),
  ];
  if (meter.cached_tokens) parts.push(word("cached", { tokens: number(meter.cached_tokens) }));
  if (meter.max_context) parts.push(word("context", { used: number(meter.num_tokens), all: number(meter.max_context) }));
  return parts.join(" · ");
}

// What happens before the first token: the place in the queue, then how much of the prompt is read.
export class Waiting {
  constructor() {
    this.text = element("span");
    this.bar = element("progress", { hidden: true });
    this.bar.setAttribute("aria-label", word("reading"));
    this.node = element("div", { className: "waiting" }, element("span", { className: "dot" }), this.text, this.bar);
    this.node.setAttribute("role", "status");
  }

  show(meter, hasBegun) {
    this.node.hidden = hasBegun;
    if (hasBegun || !meter) return;
    const { queue_place: place, prompt_tokens: all, prefilled, cached_tokens: cached } = meter;
    const waits = place !== null;
    this.bar.hidden = waits || !(all > 0 && prefilled > 0);
    if (waits) this.text.textContent = word("queued", { place: place + 1 });
    else if (all > 0) this.#showReading(all, prefilled ?? 0, cached ?? 0);
  }

  #showReading(all, read, cached) {
    this.bar.max = all;
    this.bar.value = read;
    const parts = [word("read", { read: number(read), all: number(all) })];
    if (cached) parts.push(word("cached", { tokens: number(cached) }));
    this.text.textContent = parts.join(" · ");
  }

  remove() {
    this.node.remove();
  }
}
