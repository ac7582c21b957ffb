// The open conversation in the page: its messages along the current path, and what the reader does with them.

import { follow } from "./answers.js";
import { get, Refused } from "./api.js";
import { Conversation } from "./conversation.js";
import { copy } from "./copy.js";
import { byId } from "./dom.js";
import { AnswerView, QuestionView } from "./messages.js";
import { pairNode, pairOf } from "./pair.js";
import { toast } from "./toast.js";
import { word } from "./translations.js";

const NEAR_END = 80; // pixels from the end within which the view follows the answer

const [scroller, welcome, thread, status] = ["scroller", "welcome", "thread", "status"].map(byId);

export class Chat {
  conversation = new Conversation();
  #views = new Map(); // by the id of the message; an answer goes on growing while another branch is shown
  #kept = new Set(); // questions of whose two answers one was chosen
  #control = new AbortController(); // ends with the stay at this conversation

  // `on`: opened(conversation), created(conversation), continued(), running(is), growing(experts, signal), model() for the one that is chosen.
  constructor(on) {
    this.on = on;
  }

  // Opens a conversation, at a message if one is named; null begins a new one with `settings`.
  async open(id, at, settings) {
    this.#leave();
    const { signal } = this.#control;
    try {
      this.conversation = id ? await Conversation.read(id, signal) : new Conversation(settings);
    } catch (error) {
      if (signal.aborted) return;
      toast(error.message);
      if (error instanceof Refused) this.on.lost();
      return;
    }
    const { tree } = this.conversation;
    if (tree.get(at)) tree.leaf = tree.newestLeaf(at);
    thread.replaceChildren();
    this.on.opened(this.conversation);
    this.#draw();
    if (tree.get(at)) this.#views.get(at).node.scrollIntoView({ block: "center" });
    else scroller.scrollTop = scroller.scrollHeight;
  }

  // A conversation in which nothing was said, on no device, is not kept.
  #leave() {
    this.#control.abort();
    this.#control = new AbortController();
    this.#views.clear();
    const { id, tree, path } = this.conversation;
    if (id && !tree.size) fetch(`${path}?forever=true&if_empty=true`, { method: "DELETE", keepalive: true });
  }

  // What another device did meanwhile.
  async catchUp() {
    if (!this.conversation.id || this.#pending("running").length) return;
    if (this.isRunning) return this.#renew();
    const before = this.conversation.tree.leaf;
    await this.conversation.reload();
    if (before !== this.conversation.tree.leaf) this.#draw();
  }

  // The answers at the end of the path: two, side by side, or none.
  #pair() {
    const { tree, settings } = this.conversation;
    const path = tree.path();
    if (!settings.beside || this.#kept.has(path.at(-1)?.parent)) return null;
    return pairOf(tree, path, [this.on.model(), settings.beside]);
  }

  // The shown answers that wait for the model ("running") or for the reader ("asking").
  #pending(...statuses) {
    const shown = new Set([...this.conversation.tree.path(), ...(this.#pair() ?? [])]);
    return [...shown].filter(({ status }) => statuses.includes(status));
  }

  // Shows what became of answers that asked the reader.
  async #renew() {
    const { conversation } = this;
    const asking = this.#pending("asking");
    await conversation.reload();
    if (conversation !== this.conversation) return;
    for (const { id } of asking) this.#views.delete(id);
    this.#draw();
  }

  async #decide(answer, call, how) {
    await this.conversation.decide(answer.id, call.id, how).catch((error) => toast(error.message));
    await this.#renew().catch((error) => toast(error.message));
    this.#views.get(answer.id)?.node.querySelector(".ask button")?.focus();
  }

  #draw() {
    const { tree } = this.conversation;
    const path = tree.path();
    const pair = this.#pair();
    const nodes = path.map((message) => this.#view(message).node);
    if (pair) nodes.splice(-1, 1, pairNode(pair, pair.map((answer) => this.#view(answer)), (answer) => this.#keep(answer)));
    for (const [index, node] of nodes.entries()) {
      if (thread.children[index] !== node) thread.insertBefore(node, thread.children[index] ?? null);
    }
    while (thread.children.length > nodes.length) thread.lastChild.remove();
    for (const { id } of path) {
      const { place, alternatives } = tree.place(id);
      this.#views.get(id).showPlace(place, alternatives.length);
      this.#views.get(id).offerAnswer?.(id === tree.leaf);
    }
    for (const { id } of pair ?? []) this.#views.get(id).showPlace(0, 1);
    welcome.hidden = nodes.length > 0;
    this.on.running(this.isRunning);
  }

  #view(message) {
    let view = this.#views.get(message.id);
    if (!view) {
      const files = message.files.map((id) => this.conversation.files.get(id)).filter(Boolean);
      const isQuestion = message.role === "user";
      view = isQuestion ? new QuestionView(message, files, this.#acts) : new AnswerView(message, this.#acts);
      this.#views.set(message.id, view);
      if (message.status === "running") this.#follow(message, view);
    }
    return view;
  }

  async #follow(message, view) {
    const { conversation } = this;
    const { signal } = this.#control;
    this.on.growing(conversation.expertsOf(message.id), signal);
    try {
      const change = (how) => this.#following(how);
      const end = await follow(conversation.eventsOf(message.id), view, signal, change);
      const finished = conversation.tree.put({ ...message, ...end });
      this.#following(() => view.finish(finished));
      status.textContent = word(finished.status === "asking" ? "waits_for_you" : "answer_there");
    } catch (error) {
      if (signal.aborted) return;
      conversation.tree.put({ ...message, status: "failed" });
      this.#following(() => view.finish({ ...message, content: view.text, status: "failed", error: error.message }));
    }
    this.#draw();
    this.on.continued();
  }

  // Changes the page, and keeps its end in view if it was: a reader who scrolled up is left alone.
  #following(change) {
    const atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END;
    change();
    if (atEnd) scroller.scrollTop = scroller.scrollHeight;
  }

  // Puts a question at the end of the path, or in place of `edited`.
  async ask(text, files, done, edited) {
    const { conversation } = this;
    const { tree } = conversation;
    const isNew = !conversation.id || !tree.size;
    const parent = edited ? edited.parent : tree.lastAnswered();
    const question = await conversation.say(text, parent, files);
    if (conversation !== this.conversation) return;
    done();
    if (isNew) this.on.created(conversation);
    this.#kept.delete(question.id);
    await this.#answer(question);
    const { beside } = conversation.settings;
    if (conversation === this.conversation && beside && beside !== this.on.model()) await this.#answer(question, beside);
  }

  #answer(question, model = this.on.model()) {
    return this.#grow(question.id, () => this.conversation.answer(question.id, model));
  }

  // Goes on with one of two answers.
  async #keep({ id, parent }) {
    const { conversation } = this;
    this.#kept.add(parent);
    const leaf = conversation.tree.newestLeaf(id);
    conversation.tree.leaf = leaf;
    this.#draw();
    await conversation.choose(leaf).catch((error) => toast(error.message));
  }

  // Shows an answer from its beginning; a refusal is said below the message `id`.
  async #grow(id, begin) {
    const { conversation } = this;
    status.textContent = "";
    this.#draw();
    scroller.scrollTop = scroller.scrollHeight;
    this.on.running(true);
    try {
      const answer = await begin();
      if (conversation !== this.conversation) return;
      this.#views.delete(answer.id); // a continued answer grows anew
      this.#draw();
      scroller.scrollTop = scroller.scrollHeight;
    } catch (error) {
      if (conversation !== this.conversation) return;
      this.#draw();
      this.#views.get(id).notice(error.message, "error");
      scroller.scrollTop = scroller.scrollHeight;
    }
    this.on.continued();
  }

  async stop() {
    const stops = this.#pending("running", "asking").map(({ id }) => this.conversation.stop(id));
    const renew = () => this.#pending("asking").length && this.#renew();
    await Promise.all(stops).then(renew).catch((error) => toast(error.message));
  }

  get isRunning() {
    return this.#pending("running", "asking").length > 0;
  }

  editLast() {
    const last = this.conversation.tree.path().findLast((message) => message.role === "user");
    if (last) this.#views.get(last.id).edit(last.content);
  }

  #acts = {
    copy,
    openFile: (file) => this.#openFile(file),
    answer: (question) => this.#answer(question),
    decide: (answer, call, how) => this.#decide(answer, call, how),
    answerNow: (answer) => this.conversation.answerNow(answer.id).catch((error) => toast(error.message)),
    regenerate: (answer) => this.#unlessRunning(() => this.#answer({ id: answer.parent }, this.#pair() ? answer.model : undefined)),
    continue: (answer) => this.#unlessRunning(() => this.#grow(answer.id, () => this.conversation.continue(answer.id))),
    save: (message, text, done) => this.#unlessRunning(() => this.#save(message, text, done)),
    step: (message, step) => this.#step(message, step),
  };

  #unlessRunning(act) {
    if (this.isRunning) toast(word("still_answering"));
    else return act();
  }

  async #save(message, text, done) {
    try {
      if (text === message.content || !text.trim()) return done();
      if (message.role === "user") return await this.ask(text, message.files, done, message);
      await this.conversation.rewrite(message, text);
      done();
      this.#draw();
    } catch (error) {
      toast(error.message);
    }
  }

  async #step(message, step) {
    const { tree } = this.conversation;
    const other = tree.beside(message.id, step);
    const leaf = tree.newestLeaf(other.id);
    tree.leaf = leaf;
    this.#draw();
    const arrows = this.#views.get(other.id).node.querySelectorAll(".branches button:enabled");
    arrows[step > 0 ? arrows.length - 1 : 0].focus();
    await this.conversation.choose(leaf).catch((error) => toast(error.message));
  }

  async #openFile(file) {
    try {
      const { text } = await get(`${this.conversation.path}/files/${file.id}`);
      byId("file-name").textContent = file.name;
      byId("file-text").textContent = text;
      byId("file").showModal();
    } catch (error) {
      toast(error.message);
    }
  }
}
