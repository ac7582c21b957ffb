// Where the reader writes: a field that grows, files, dictation.

import { byId, element } from "./dom.js";
import { LONG_PASTE, fileChip, pastedFile, readFile } from "./files.js";
import { canListen, dictation } from "./speech.js";
import { toast } from "./toast.js";

const [form, message, send, stop, chips, picker, mic, dropZone] = [
  "composer", "message", "send", "stop", "attached", "picker", "mic", "drop",
].map(byId);
const DRAFT = "draft:"; // in sessionStorage, for each conversation

export class Composer {
  #uploads = new Set();
  #attached = new Map();
  #isRunning = false;
  #key = DRAFT;
  #endDictation = null;

  // `acts`: submit(text, file ids), stop(), attach(file), detach(id), editLast().
  constructor(acts) {
    this.acts = acts;
    this.#listen();
    mic.hidden = !canListen;
  }

  // Shows what was written for a conversation and not sent.
  open(id, files) {
    this.#key = DRAFT + (id ?? "");
    this.#attached = new Map(files.map((file) => [file.id, file]));
    message.value = sessionStorage.getItem(this.#key) ?? "";
    this.#drawFiles();
    this.focus();
  }

  // What is written stays when a new conversation gets its id.
  rename(id) {
    sessionStorage.removeItem(this.#key);
    this.#key = DRAFT + id;
    this.#changed();
  }

  set running(isRunning) {
    this.#isRunning = isRunning;
    stop.hidden = !isRunning;
    send.hidden = isRunning;
    this.#changed();
  }

  // Not on a touch screen, where it would bring up the keyboard.
  focus() {
    this.#changed();
    if (matchMedia("(hover: hover)").matches) message.focus();
  }

  async submit(text = message.value) {
    if (this.#isRunning || this.#isSending) return;
    this.#isSending = true;
    try {
      await Promise.all(this.#uploads);
      const files = [...this.#attached.keys()];
      if (!text.trim() && !files.length) return;
      await this.acts.submit(text.trim(), files, () => this.#clear());
    } catch (error) {
      toast(error.message);
    } finally {
      this.#isSending = false;
    }
  }

  #isSending = false;

  #clear() {
    message.value = "";
    this.#attached.clear();
    this.#drawFiles();
    this.#changed();
  }

  #changed() {
    if (message.value) sessionStorage.setItem(this.#key, message.value);
    else sessionStorage.removeItem(this.#key);
    send.disabled = !message.value.trim() && !this.#attached.size;
    message.style.height = "auto";
    message.style.height = `${message.scrollHeight}px`;
  }

  addFiles(files) {
    for (const file of files) {
      const upload = this.#upload(file).finally(() => this.#uploads.delete(upload));
      this.#uploads.add(upload);
    }
    this.#drawFiles();
  }

  async #upload(file) {
    const chip = element("span", { className: "chip busy" }, file.name);
    chips.append(chip);
    chips.hidden = false;
    try {
      const stored = await this.acts.attach(await readFile(file));
      this.#attached.set(stored.id, stored);
    } catch (error) {
      toast(error.message);
    } finally {
      chip.remove();
      this.#drawFiles();
      this.#changed();
    }
  }

  #drawFiles() {
    const busy = [...chips.querySelectorAll(".busy")];
    const there = [...this.#attached.values()].map((file) => fileChip(file, { drop: () => this.#detach(file.id) }));
    chips.replaceChildren(...there, ...busy);
    chips.hidden = !chips.childElementCount;
  }

  #detach(id) {
    this.#attached.delete(id);
    this.#drawFiles();
    this.#changed();
    this.acts.detach(id).catch((error) => toast(error.message));
    message.focus();
  }

  #listen() {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    message.addEventListener("input", () => this.#changed());
    message.addEventListener("keydown", (event) => this.#keyPressed(event));
    message.addEventListener("paste", (event) => this.#paste(event));
    stop.addEventListener("click", () => this.acts.stop());
    byId("attach").addEventListener("click", () => picker.click());
    picker.addEventListener("change", () => {
      this.addFiles([...picker.files]);
      picker.value = "";
    });
    mic.addEventListener("click", () => this.#dictate());
    this.#listenToDrops();
  }

  #keyPressed(event) {
    if (event.isComposing) return; // while an input method composes Chinese, Enter picks a word
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.submit();
    } else if (event.key === "ArrowUp" && !message.value) {
      event.preventDefault();
      this.acts.editLast();
    }
  }

  #paste(event) {
    const files = [...event.clipboardData.files];
    const text = event.clipboardData.getData("text");
    if (!files.length && text.length <= LONG_PASTE) return;
    event.preventDefault();
    this.addFiles(files.length ? files : [pastedFile(text)]);
  }

  #listenToDrops() {
    const bringsFiles = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!bringsFiles(event)) return;
      event.preventDefault();
      dropZone.hidden = false;
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) dropZone.hidden = true;
    });
    document.addEventListener("drop", (event) => {
      if (!bringsFiles(event)) return;
      event.preventDefault();
      dropZone.hidden = true;
      this.addFiles([...event.dataTransfer.files]);
    });
  }

  #dictate() {
    if (this.#endDictation) return this.#endDictation();
    mic.setAttribute("aria-pressed", "true");
    const write = (text) => {
      message.value += text;
      this.#changed();
    };
    this.#endDictation = dictation(write, () => {
      mic.setAttribute("aria-pressed", "false");
      this.#endDictation = null;
      message.focus();
    });
  }
}
