// The tokens of an answer in a row. One of them can be chosen with the mouse or the arrow keys.

import { element } from "./dom.js";
import { number } from "./translations.js";

const MAX_TOKENS = 512;
const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity };

export function percent(share) {
  if (share > 0 && share < 0.001) return `< ${number(0.1, 1)} %`;
  return `${number(100 * share, share < 0.1 ? 1 : 0)} %`;
}

// A token as it can be seen: its text, with signs for what has no ink.
export const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +$/, (all) => "␣".repeat(all.length));

export class TokenStrip {
  #tokens = new Map(); // by their nodes
  #chosen = null;

  // `choose` gets the token that is pointed at, or null.
  constructor(node, choose) {
    this.node = node;
    this.choose = choose;
    node.addEventListener("pointerover", ({ target }) => this.#choose(target.closest("[role=option]")));
    node.addEventListener("pointerleave", () => this.#choose(node.querySelector(":focus")));
    node.addEventListener("focusin", ({ target }) => this.#choose(target));
    node.addEventListener("focusout", () => this.#choose(null));
    node.addEventListener("keydown", (event) => this.#move(event));
  }

  clear() {
    this.#choose(null);
    this.#tokens.clear();
    this.node.replaceChildren();
  }

  add(tokens) {
    const nodes = tokens.map((token) => {
      const className = token.p < 0.25 ? "token unlikely" : token.p < 0.75 ? "token unsure" : "token";
      const node = element("span", { className, tabIndex: -1, role: "option", ariaSelected: "false" }, visible(token.text));
      node.setAttribute("aria-label", `${token.text} ${percent(token.p)}`);
      this.#tokens.set(node, token);
      return node;
    });
    this.node.append(...nodes);
    for (const node of [...this.node.children].slice(0, -MAX_TOKENS)) {
      if (node === this.#chosen) this.#choose(null);
      this.#tokens.delete(node);
      node.remove();
    }
    this.#offerNewest();
  }

  // The token that Tab leads to, and that is in view.
  #offerNewest() {
    const newest = this.node.lastElementChild;
    if (!newest || this.#chosen) return;
    this.node.querySelector("[tabindex='0']")?.setAttribute("tabindex", -1);
    newest.tabIndex = 0;
    this.node.scrollTop = this.node.scrollHeight;
  }

  #choose(node) {
    const token = this.#tokens.get(node) ?? null;
    if (token === (this.#tokens.get(this.#chosen) ?? null)) return;
    this.#chosen?.setAttribute("aria-selected", "false");
    this.#chosen = token && node;
    this.#chosen?.setAttribute("aria-selected", "true");
    this.choose(token);
  }

  #move(event) {
    const nodes = [...this.node.children];
    const from = nodes.indexOf(event.target);
    if (!(event.key in STEPS) || from < 0) return;
    event.preventDefault();
    const to = nodes[Math.max(0, Math.min(nodes.length - 1, from + STEPS[event.key]))];
    event.target.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }
}
