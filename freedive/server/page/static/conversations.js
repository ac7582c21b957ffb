// The side bar: pinned conversations, folders, and the others by the day they were continued.

import { get, patch, remove } from "./api.js";
import { exportItems } from "./archive.js";
import { ROOT } from "./conversation.js";
import { byId, element, icon, iconButton } from "./dom.js";
import { askText, openMenu } from "./menu.js";
import { toast } from "./toast.js";
import { word } from "./translations.js";

const DAY_MS = 86_400_000;
const PART = 50; // conversations that are loaded at once
const MOST = 200;
const list = byId("list");
const end = byId("list-end"); // more is loaded when it comes into view

export class SideBar {
  #current = null;
  #next = null;
  #known = new Map();
  #folders = [];
  #openFolders = new Set();
  #loading = null;

  // `left` is called when the conversation that is open was deleted.
  constructor({ left, renamed }) {
    this.left = left;
    this.renamed = renamed;
    this.observer = new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && this.#more());
  }

  // Reads the list again, as far as it was unfolded.
  async refresh() {
    const limit = Math.min(MOST, Math.max(PART, this.#known.size));
    const [page, { folders }, ...inside] = await Promise.all([
      get(`${ROOT}?folder=&limit=${limit}`),
      get(`${ROOT}/folders`),
      ...[...this.#openFolders].map((name) => this.#inFolder(name)),
    ]);
    this.#folders = folders.filter(({ name }) => name);
    this.#next = page.next;
    this.#known = new Map([...page.conversations, ...inside.flat()].map((each) => [each.id, each]));
    this.#draw();
  }

  updated = (id) => this.#known.get(id)?.updated;

  mark(id) {
    this.#current = id;
    for (const link of list.querySelectorAll("a")) this.#markLink(link);
  }

  #markLink(link) {
    if (link.hash === `#${this.#current}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }

  async #inFolder(name) {
    return (await get(`${ROOT}?limit=${MOST}&folder=${encodeURIComponent(name)}`)).conversations;
  }

  #more() {
    if (!this.#next) return;
    this.#loading ??= get(`${ROOT}?folder=&limit=${PART}&after=${this.#next}`)
      .then((page) => {
        this.#next = page.next;
        for (const each of page.conversations) this.#known.set(each.id, each);
        this.#draw();
      })
      .catch(() => {}) // it is tried again when the end is next in view
      .finally(() => (this.#loading = null));
  }

  #draw() {
    const all = [...this.#known.values()];
    const outside = all.filter((each) => !each.folder);
    const parts = [this.#group(word("pinned"), outside.filter((each) => each.pinned))];
    for (const { name } of this.#folders) parts.push(this.#folder(name, all));
    for (const key of AGES) parts.push(this.#group(word(key), outside.filter((each) => age(each) === key)));
    const atTop = list.parentElement.scrollTop;
    list.replaceChildren(...parts.filter(Boolean));
    list.parentElement.scrollTop = atTop;
    end.hidden = !this.#next;
    this.observer.unobserve(end); // it tells again whether the end is in view
    this.observer.observe(end);
    byId("list-empty").hidden = Boolean(all.length || this.#folders.length);
  }

  #group(title, conversations) {
    if (!conversations.length) return null;
    const items = conversations.map((each) => this.#item(each));
    return element("section", {}, element("h2", {}, title), element("ul", {}, ...items));
  }

  #folder(name, all) {
    const items = all.filter((each) => each.folder === name).map((each) => this.#item(each));
    const content = element("ul", {}, ...items);
    const summary = element("summary", {}, icon("folder"), element("span", {}, name));
    const fold = element("details", { className: "folder", open: this.#openFolders.has(name) }, summary, content);
    fold.addEventListener("toggle", async () => {
      if (fold.open === this.#openFolders.has(name)) return;
      this.#openFolders[fold.open ? "add" : "delete"](name);
      if (fold.open) await this.refresh();
    });
    return fold;
  }

  #item(conversation) {
    const title = conversation.title || word("untitled");
    const link = element("a", { href: `#${conversation.id}`, title }, title);
    this.#markLink(link);
    const more = iconButton("more", "more", () => openMenu(more, this.#items(conversation)));
    return element("li", {}, link, more);
  }

  #items(conversation) {
    const { id, pinned } = conversation;
    const set = (changes) => this.#change(id, changes);
    return [
      { icon: "edit", key: "rename", act: () => this.rename(conversation) },
      { icon: "pin", key: pinned ? "unpin" : "pin", act: () => set({ pinned: !pinned }) },
      { icon: "folder", key: "move", act: () => this.#move(conversation) },
      ...exportItems(`${ROOT}/${id}`),
      { icon: "trash", key: "delete", act: () => this.delete(conversation) },
    ];
  }

  async rename({ id, title }) {
    const text = await askText("rename", title);
    if (text) await this.#change(id, { title: text.slice(0, 300) });
  }

  async #move({ id, folder }) {
    const names = this.#folders.map(({ name }) => name);
    const text = await askText("move_where", folder, names);
    if (text === null) return;
    if (text) this.#openFolders.add(text);
    await this.#change(id, { folder: text.slice(0, 300) });
  }

  async #change(id, changes) {
    try {
      this.renamed(await patch(`${ROOT}/${id}`, changes));
      await this.refresh();
    } catch (error) {
      toast(error.message);
    }
  }

  async delete({ id, title }) {
    try {
      await remove(`${ROOT}/${id}`);
    } catch (error) {
      return toast(error.message);
    }
    if (id === this.#current) this.left();
    await this.refresh();
    const undo = { key: "undo", act: () => this.#change(id, { deleted: false }) };
    toast(word("deleted", { title: title || word("untitled") }), undo);
  }
}

const AGES = ["today", "yesterday", "this_week", "earlier"];

function age({ pinned, updated }) {
  if (pinned) return "pinned";
  const days = (new Date().setHours(0, 0, 0, 0) - updated) / DAY_MS;
  return AGES[days <= 0 ? 0 : days <= 1 ? 1 : days <= 7 ? 2 : 3];
}
