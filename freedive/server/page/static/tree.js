// The tree of a conversation's messages. Those with the same parent are alternatives; a path ends at a leaf.

export class Tree {
  #byId = new Map(); // in the order of their creation
  leaf = null;

  constructor(messages = [], leaf = null) {
    for (const message of messages) this.put(message);
    this.leaf = leaf;
  }

  get size() {
    return this.#byId.size;
  }

  get(id) {
    return this.#byId.get(id);
  }

  put(message) {
    const whole = { ...this.#byId.get(message.id), ...message };
    this.#byId.set(message.id, whole);
    return whole;
  }

  all() {
    return [...this.#byId.values()];
  }

  children(parent) {
    return this.all().filter((message) => message.parent === parent);
  }

  // The messages from the first one to the leaf.
  path() {
    const found = [];
    for (let at = this.get(this.leaf); at; at = this.get(at.parent)) found.unshift(at);
    return found;
  }

  // The message under which the next question stands, null for a first one. A question that got nothing is left out:
  // the next one is an alternative to it.
  lastAnswered() {
    const answer = this.path().findLast(
      ({ role, content, reasoning, calls }) => role === "assistant" && (content || reasoning || calls.length),
    );
    return answer?.id ?? null;
  }

  // The alternative `step` places after a message, undefined where there is none.
  beside(id, step) {
    const { place, alternatives } = this.place(id);
    return alternatives[place + step];
  }

  place(id) {
    const alternatives = this.children(this.get(id).parent);
    return { place: alternatives.findIndex((message) => message.id === id), alternatives };
  }

  // The end of the path through a message that follows the newest of each alternatives.
  newestLeaf(id) {
    let leaf = id;
    for (let next = this.children(leaf); next.length; next = this.children(leaf)) leaf = next.at(-1).id;
    return leaf;
  }
}
