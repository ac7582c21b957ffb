// One question and its answer in the page.

import { label, word } from "./translations.js";

function element(tag, className, parent) {
  const node = document.createElement(tag);
  node.className = className;
  parent.append(node);
  return node;
}

export function addTurn(conversation, question) {
  const turn = element("section", "turn", conversation);
  element("div", "question", turn).textContent = question;
  return turn;
}

export class Answer {
  text = "";

  constructor(turn) {
    this.turn = turn;
    this.node = element("article", "answer waiting", turn);
    this.node.setAttribute("aria-busy", "true");
    this.tail = element("div", "tail", this.node);
    this.foot = element("div", "meter", turn);
  }

  // The server sends safe HTML: blocks that have settled, and the block that still grows. Thoughts are plain text.
  update({ thoughts, text, settled, tail, meter }) {
    this.text += text;
    if (thoughts) this.#think(thoughts);
    this.node.classList.remove("waiting");
    this.#insert(settled);
    this.tail.innerHTML = tail;
    label(this.tail);
    this.foot.textContent = word("meter", {
      speed: meter.tokens_per_s.toFixed(meter.tokens_per_s < 10 ? 1 : 0),
      first: meter.first_token_s.toFixed(2),
      used: meter.num_tokens,
      context: meter.max_context,
    });
  }

  #think(text) {
    if (!this.thoughts) {
      const fold = element("details", "thoughts", this.node);
      Object.assign(element("summary", "", fold), { textContent: word("thoughts") }).dataset.text = "thoughts";
      this.node.prepend(fold);
      this.thoughts = element("div", "", fold);
    }
    this.thoughts.append(text);
  }

  #insert(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    label(template.content);
    this.tail.before(template.content);
  }

  finish() {
    this.node.classList.remove("waiting");
    this.node.removeAttribute("aria-busy");
    if (!this.text) return;
    const copy = document.createElement("button");
    Object.assign(copy, { type: "button", className: "copy", textContent: word("copy") });
    copy.dataset.text = "copy";
    copy.answer = this;
    this.foot.prepend(copy);
  }

  notice(text, kind = "") {
    const node = element("p", `notice ${kind}`, this.turn);
    node.textContent = text;
    if (kind === "error") node.setAttribute("role", "alert");
  }
}
