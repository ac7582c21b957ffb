// The chat page. The conversation lives here; the server is told all of it with each question.

import { copied } from "./copy.js";
import { authorized, post, Refused } from "./events.js";
import { authorization } from "./key.js";
import { Answer, addTurn } from "./turns.js";
import { languageName, nextLanguage, setLanguage, word } from "./translations.js";

const NEAR_END = 80; // pixels from the end within which the view follows the answer

const [scroller, welcome, conversation, composer, message, send, stop, model, language] = [
  "scroller", "welcome", "conversation", "composer", "message", "send", "stop", "model", "language",
].map((id) => document.getElementById(id));

let messages = [];
let running = null; // the AbortController of the answer under way

async function ask(question) {
  const control = new AbortController();
  setRunning(control);
  welcome.hidden = true;
  const history = messages; // a new chat may replace it meanwhile
  history.push({ role: "user", content: question });
  const answer = new Answer(addTurn(conversation, question));
  scroller.scrollTop = scroller.scrollHeight;
  await receive(answer, history, control.signal);
  answer.finish();
  if (answer.text) history.push({ role: "assistant", content: answer.text });
  else history.pop(); // a question without an answer would leave two in a row
  if (running === control) setRunning(null);
}

async function receive(answer, messages, signal) {
  try {
    await offerModels(signal);
    for await (const event of post("/chat/stream", { model: model.value, messages, repetition_detection: true }, signal)) {
      following(() => (event.error ? answer.notice(event.error, "error") : answer.update(event)));
      if (["length", "repetition"].includes(event.finished)) answer.notice(word(event.finished));
    }
  } catch (error) {
    if (signal.aborted) answer.notice(word("stopped"));
    else following(() => answer.notice(error instanceof Refused ? error.message : word("unreachable"), "error"));
  }
}

// Where keys are needed, the page comes without the names of models.
async function offerModels(signal) {
  if (model.options.length) return;
  const { data } = await (await authorized("/v1/models", { signal })).json();
  model.append(...data.map(({ id }) => new Option(id)));
  model.disabled = data.length === 1;
}

// Change the page, and keep its end in view if it was: a reader who scrolled up is left alone.
function following(change) {
  const atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END;
  change();
  if (atEnd) scroller.scrollTop = scroller.scrollHeight;
}

function setRunning(control) {
  running = control;
  stop.hidden = !running;
  send.hidden = Boolean(running);
  resize();
}

function resize() {
  send.disabled = !message.value.trim();
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

function submit(text) {
  if (running || !text.trim()) return;
  message.value = "";
  focusMessage();
  ask(text.trim());
}

function newChat() {
  running?.abort();
  setRunning(null);
  messages = [];
  conversation.replaceChildren();
  welcome.hidden = false;
  focusMessage();
}

// Not on a touch screen, where it would bring up the keyboard.
function focusMessage() {
  if (matchMedia("(hover: hover)").matches) message.focus();
}

function showOtherLanguage() {
  language.textContent = languageName(nextLanguage());
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  submit(message.value);
});
message.addEventListener("keydown", (event) => {
  // While an input method composes Chinese, Enter picks a word.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit(message.value);
});
message.addEventListener("input", resize);
stop.addEventListener("click", () => {
  running?.abort();
  focusMessage();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
document.addEventListener("click", (event) => {
  if (event.target.matches(".copy")) copied(event.target);
  if (event.target.matches(".idea")) submit(event.target.textContent);
});
document.getElementById("new").addEventListener("click", newChat);
language.addEventListener("click", () => {
  setLanguage(nextLanguage());
  showOtherLanguage();
});

showOtherLanguage();
resize();
if (authorization().Authorization) offerModels(new AbortController().signal).catch(() => {}); // it is said when asking
