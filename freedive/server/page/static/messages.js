// Messages in the page: a question of the reader's, or an answer that may still grow.

import { question, report } from "./calls.js";
import { element, icon, iconButton, rendered, textButton } from "./dom.js";
import { expertsButton } from "./experts.js";
import { fileChip } from "./files.js";
import { meterText, Waiting } from "./meter.js";
import { canSpeak, speak } from "./speech.js";
import { label, word } from "./translations.js";

const CUT = ["length", "repetition"]; // ends after which there may be more

// What the views of questions and answers share: the actions below, and editing in place.
class MessageView {
  constructor(kind, message, acts) {
    this.message = message;
    this.acts = acts;
    this.body = element("div", { className: kind });
    this.actions = element("div", { className: "actions" });
    this.node = element("article", { className: `message of-${kind}` }, this.body, this.actions);
    this.node.setAttribute("aria-label", word(kind === "question" ? "you" : "assistant"));
    this.node.dataset.id = message.id;
  }

  // The arrows between alternatives, where there are any.
  showPlace(place, count) {
    this.node.querySelector(".branches")?.remove();
    if (count < 2) return;
    const text = element("span", {}, `${place + 1}/${count}`);
    const before = iconButton("left", "earlier_version", () => this.acts.step(this.message, -1));
    const after = iconButton("right", "later_version", () => this.acts.step(this.message, 1));
    before.disabled = place === 0;
    after.disabled = place === count - 1;
    this.actions.prepend(element("div", { className: "branches" }, before, text, after));
  }

  edit(text) {
    if (this.editor) return;
    const area = element("textarea", { value: text, rows: Math.min(12, text.split("\n").length + 1) });
    area.setAttribute("aria-label", word("edit"));
    const save = () => this.acts.save(this.message, area.value, () => this.#endEdit());
    const buttons = element(
      "div",
      { className: "buttons" },
      textButton("cancel", () => this.#endEdit()),
      textButton(this.message.role === "user" ? "send" : "save", save, "primary"),
    );
    this.editor = element("div", { className: "editor" }, area, buttons);
    this.editor.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.#endEdit();
    });
    this.node.classList.add("edited");
    this.body.after(this.editor);
    area.focus();
  }

  #endEdit() {
    this.editor.remove();
    this.editor = null;
    this.node.classList.remove("edited");
  }

  notice(text, kind = "") {
    const node = element("p", { className: `notice ${kind}` }, text);
    if (kind === "error") node.setAttribute("role", "alert");
    this.actions.before(node);
  }
}

export class QuestionView extends MessageView {
  constructor(message, files, acts) {
    super("question", message, acts);
    this.body.textContent = message.content;
    this.body.hidden = !message.content;
    const chips = files.map((file) => fileChip(file, { open: () => acts.openFile(file) }));
    if (chips.length) this.body.before(element("div", { className: "chips" }, ...chips));
    this.actions.append(
      iconButton("copy", "copy", (event) => acts.copy(event.currentTarget, message.content)),
      iconButton("edit", "edit", () => this.edit(message.content)),
    );
  }

  // A question whose answer was refused or never asked for.
  offerAnswer(offered) {
    if (!offered) this.node.querySelector(".notice")?.remove();
    this.actions.querySelector(".again")?.remove();
    if (offered) this.actions.append(iconButton("again", "answer_it", () => this.acts.answer(this.message)));
  }
}

export class AnswerView extends MessageView {
  constructor(message, acts) {
    super("answer", message, acts);
    this.tail = element("div", { className: "tail" });
    this.body.append(this.tail);
    this.calls = element("div");
    this.questions = element("div");
    this.body.before(this.calls);
    this.body.after(this.questions);
    if (message.status === "running") this.begin();
    else this.finish(message);
  }

  begin() {
    this.isRunning = true;
    this.text = this.thoughts = "";
    this.node.setAttribute("aria-busy", "true");
    this.waiting = new Waiting();
    this.calls.before(this.waiting.node);
    this.actions.replaceChildren(expertsButton());
  }

  // All that there is of a running answer; more comes with grow.
  show({ html, tail, thoughts, text, calls, meter }) {
    this.text = this.thoughts = "";
    this.fold?.remove();
    this.fold = null;
    this.body.replaceChildren(this.tail);
    this.calls.replaceChildren();
    this.grow({ thoughts, text, settled: html, tail, calls, meter });
  }

  // The server sends safe HTML: blocks that have settled, and the block that still grows. Thoughts are plain text.
  grow({ thoughts, text, settled, tail, calls, meter }) {
    this.text += text;
    this.meter = meter;
    if (thoughts) this.#think(thoughts);
    if (this.text) this.#endThinking();
    this.waiting.show(meter, Boolean(this.text || this.thoughts));
    this.calls.append(...calls.map(report));
    if (settled) this.#insert(settled);
    this.tail.innerHTML = tail;
    label(this.tail);
  }

  #think(text) {
    if (!this.fold) this.#openFold();
    this.thoughts += text;
    this.thoughtText.append(text);
  }

  #openFold() {
    this.summary = element("span", {}, word("thoughts"));
    this.thoughtText = element("div");
    this.fold = element(
      "details",
      { className: "thoughts" },
      element("summary", {}, icon("right"), this.summary),
      this.thoughtText,
    );
    this.calls.before(this.fold);
    if (!this.isRunning) return;
    this.thinkingSince = performance.now() - 1000 * (this.meter?.thought_s ?? 0);
    const hurry = ({ currentTarget }) => {
      currentTarget.disabled = true;
      this.acts.answerNow(this.message);
    };
    this.hurry = textButton("answer_now", hurry, "hurry");
    this.fold.after(this.hurry);
    const tick = () => this.#tellThinking("thinking", (performance.now() - this.thinkingSince) / 1000);
    this.clock = setInterval(tick, 500);
    tick();
  }

  #tellThinking(key, seconds) {
    this.summary.textContent = seconds < 1 ? word("thoughts") : word(key, { seconds: Math.floor(seconds) });
  }

  #endThinking() {
    if (!this.clock) return;
    clearInterval(this.clock);
    this.clock = null;
    this.hurry.remove();
    this.#tellThinking("thought", this.meter?.thought_s ?? 0);
  }

  #insert(html) {
    const content = rendered(html);
    label(content);
    this.tail.before(content);
  }

  finish(message) {
    const streamed = this.isRunning;
    this.message = message;
    this.isRunning = false;
    this.text = message.content;
    this.node.removeAttribute("aria-busy");
    this.waiting?.remove();
    this.#endThinking();
    if (!streamed) this.#fill(message);
    this.#showCalls(message);
    this.#tellEnd(message);
    this.#offerActions(message);
  }

  #fill(message) {
    if (message.reasoning) this.#think(message.reasoning);
    const seconds = message.timings?.thought_s;
    if (message.reasoning && seconds) this.#tellThinking("thought", seconds);
    if (message.html) this.#insert(message.html);
  }

  #showCalls({ calls = [], status }) {
    const asked = calls.filter(({ state }) => status === "asking" && state === "asked");
    const known = calls.filter((call) => !asked.includes(call));
    this.calls.replaceChildren(...known.map(report));
    this.questions.replaceChildren(
      ...asked.map((call) => question(call, (answer) => this.acts.decide(this.message, call, answer))),
    );
  }

  #tellEnd({ status, error, finish }) {
    if (status === "failed") this.notice(error || word("failed"), "error");
    else if (!["complete", "asking"].includes(status)) this.notice(word(status));
    else if (CUT.includes(finish)) this.notice(word(finish));
  }

  #offerActions(message) {
    const { acts } = this;
    if (message.status === "asking") return this.actions.replaceChildren();
    this.actions.replaceChildren(
      iconButton("copy", "copy", (event) => acts.copy(event.currentTarget, message.content)),
      iconButton("again", "regenerate", () => acts.regenerate(message)),
      iconButton("edit", "edit", () => this.edit(message.content)),
    );
    if (message.status !== "complete" || CUT.includes(message.finish)) {
      this.actions.append(iconButton("next", "continue", () => acts.continue(message)));
    }
    if (canSpeak) this.actions.append(iconButton("speak", "read_aloud", () => speak(this.body.innerText)));
    this.actions.append(expertsButton());
    const text = meterText({ ...this.meter, ...message.usage, ...message.timings });
    if (text) this.actions.append(element("span", { className: "meter" }, text));
  }
}
