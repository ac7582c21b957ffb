// One conversation: what the server keeps of it, and what can be done with it. It shows nothing.

import { get, patch, post, remove } from "./api.js";
import { Tree } from "./tree.js";

export const ROOT = "/app/conversations";

export class Conversation {
  id = null; // until the first message or file, there is nothing on the server
  title = "";
  folder = "";
  temporary = false;
  tree = new Tree();
  files = new Map();
  #creating = null;

  constructor(settings = {}) {
    this.settings = settings;
  }

  static async read(id, signal) {
    const conversation = new Conversation();
    conversation.#take(await get(`${ROOT}/${encodeURIComponent(id)}?html=true`, signal));
    return conversation;
  }

  #take({ messages, files, leaf, ...fields }) {
    Object.assign(this, fields);
    this.temporary = fields.id.startsWith("temp");
    this.tree = new Tree(messages, leaf);
    this.files = new Map(files.map((file) => [file.id, file]));
  }

  get path() {
    return `${ROOT}/${this.id}`;
  }

  // The model that was chosen for the conversation, or that answered last; not the second one of two.
  get model() {
    const { model, beside } = this.settings;
    return model ?? this.tree.all().findLast((message) => message.model && message.model !== beside)?.model;
  }

  // Several calls at once make one conversation.
  async ensure() {
    if (this.id) return;
    const { settings, folder, temporary } = this;
    this.#creating ??= post(ROOT, { settings, folder, temporary });
    try {
      Object.assign(this, await this.#creating);
    } finally {
      this.#creating = null;
    }
  }

  async reload() {
    this.#take(await get(`${this.path}?html=true`));
  }

  // Files that no message has yet.
  get waitingFiles() {
    const used = new Set(this.tree.all().flatMap((message) => message.files));
    return [...this.files.values()].filter((file) => !used.has(file.id));
  }

  async attach(file) {
    await this.ensure();
    const stored = await post(`${this.path}/files`, file);
    this.files.set(stored.id, stored);
    return stored;
  }

  async detach(id) {
    await remove(`${this.path}/files/${id}`);
    this.files.delete(id);
  }

  async say(content, parent, files = []) {
    await this.ensure();
    return this.#grow(await post(`${this.path}/messages`, { parent, content, files }));
  }

  // Another version of an answer, in the reader's words.
  async rewrite(answer, content) {
    const { parent, reasoning, model } = answer;
    await post(`${this.path}/messages`, { role: "assistant", parent, content, reasoning, model });
    await this.reload();
  }

  async answer(parent, model) {
    return this.#grow(await post(`${this.path}/answers`, { parent, ...(model && { model }) }));
  }

  async continue(id) {
    return this.#grow(await post(`${this.path}/answers`, { continue: id }));
  }

  #grow(message) {
    this.tree.put(message);
    this.tree.leaf = message.id;
    return message;
  }

  stop = (id) => post(`${this.path}/answers/${id}/stop`);
  decide = (id, call, answer) => post(`${this.path}/answers/${id}/calls/${call}`, { answer });
  answerNow = (id) => post(`${this.path}/answers/${id}/answer-now`);
  eventsOf = (id) => `${this.path}/answers/${id}/events`;
  expertsOf = (id) => `${this.path}/answers/${id}/experts`;

  async choose(leaf) {
    this.tree.leaf = leaf;
    await patch(this.path, { leaf });
  }

  // Reads the title, which the first message gave.
  async reloadTitle() {
    this.title = (await get(this.path)).title;
  }

  async set(settings) {
    this.settings = settings;
    if (this.id) await patch(this.path, { settings });
  }
}
