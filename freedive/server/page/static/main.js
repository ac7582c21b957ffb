// The chat page: its parts, put together.

import { away } from "./api.js";
import { archiveItems, onImport } from "./archive.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { SideBar } from "./conversations.js";
import { byId } from "./dom.js";
import { followExperts, toggleExperts } from "./experts.js";
import * as keys from "./keys.js";
import { openLibrary } from "./library.js";
import { openMenu } from "./menu.js";
import { chosenModel, offerModels, onModel, showModel } from "./models.js";
import { onBeside, showBeside } from "./pair.js";
import { openSearch } from "./search.js";
import { openSettings } from "./settings.js";
import { toggleSideBar } from "./sidebar.js";
import { toast } from "./toast.js";
import { word } from "./translations.js";

const [title, temporary, settingsButton] = ["title", "temporary", "settings-open"].map(byId);

let wasRunning = false;

const chat = new Chat({
  opened,
  created,
  continued: () => refresh(),
  running: (is) => {
    if (is !== wasRunning) offerModels().catch(() => {}); // the answer may load its model
    composer.running = wasRunning = is;
  },
  growing: followExperts,
  lost: () => {
    history.replaceState(null, "", location.pathname);
    route();
  },
  model: chosenModel,
});
const composer = new Composer({
  submit: (text, files, done) => chat.ask(text, files, done),
  stop: () => chat.stop(),
  attach: async (file) => {
    const isNew = !chat.conversation.id;
    const stored = await chat.conversation.attach(file);
    if (isNew) showAddress(chat.conversation);
    return stored;
  },
  detach: (id) => chat.conversation.detach(id),
  editLast: () => chat.editLast(),
});
const sideBar = new SideBar({
  left: newChat,
  renamed: ({ id, title }) => {
    if (id === chat.conversation.id) showTitle(Object.assign(chat.conversation, { title }));
  },
});

function opened(conversation) {
  showTitle(conversation);
  showModel(conversation.model);
  showBeside(conversation.settings.beside);
  showTemporary();
  sideBar.mark(conversation.id);
  composer.open(conversation.id, conversation.waitingFiles);
}

// The first message gives a conversation its title.
async function created(conversation) {
  showAddress(conversation);
  await refresh();
  await chat.conversation.reloadTitle();
  showTitle(conversation);
}

function showAddress(conversation) {
  if (location.hash === `#${conversation.id}`) return;
  history.pushState(null, "", `#${conversation.id}`);
  composer.rename(conversation.id);
  sideBar.mark(conversation.id);
  showTemporary();
}

function showTitle(conversation) {
  title.textContent = conversation.title;
  document.title = conversation.title ? `${conversation.title} · freedive` : "freedive";
}

function showTemporary() {
  const { id, temporary: is } = chat.conversation;
  temporary.disabled = Boolean(id);
  temporary.hidden = Boolean(id) && !is;
  temporary.setAttribute("aria-pressed", is);
  document.documentElement.classList.toggle("is-temporary", is);
  byId("promise").textContent = word(is ? "temporary_promise" : "promise");
}

const refresh = () => sideBar.refresh().catch((error) => toast(error.message));

function newChat() {
  if (location.hash) history.pushState(null, "", location.pathname);
  return route();
}

// The address names a conversation and perhaps a message: /#conversation/message.
function route() {
  toggleSideBar(false);
  const [id, message] = location.hash.slice(1).split("/");
  return chat.open(id || null, message);
}

addEventListener("popstate", route);
document.addEventListener("visibilitychange", async () => {
  if (document.hidden) return;
  await refresh();
  await chat.catchUp().catch((error) => toast(error.message));
});
away.addEventListener("away", () => (byId("away").hidden = false));
away.addEventListener("back", async () => {
  byId("away").hidden = true;
  await refresh();
});

const showSettings = () =>
  openSettings(chat.conversation.settings, (settings) =>
    chat.conversation.set(settings).catch((error) => toast(error.message)),
  );

onModel((model) =>
  chat.conversation.set({ ...chat.conversation.settings, model }).catch((error) => toast(error.message)),
);
onBeside((beside) => {
  const { beside: before, ...settings } = chat.conversation.settings;
  chat.conversation.set(beside ? { ...settings, beside } : settings).catch((error) => toast(error.message));
});
onImport(refresh);
keys.listen({
  search: openSearch,
  newChat,
  sidebar: () => toggleSideBar(),
  experts: () => toggleExperts(),
  settings: showSettings,
  models: openLibrary,
  stop: () => (chat.isRunning ? void chat.stop() : false),
  focus: () => byId("message").focus(),
});
settingsButton.addEventListener("click", showSettings);
temporary.addEventListener("click", () => {
  chat.conversation.temporary = !chat.conversation.temporary;
  showTemporary();
});
byId("list").addEventListener("click", ({ target }) => target.closest("a") && toggleSideBar(false));
byId("library-open").addEventListener("click", openLibrary);
byId("new").addEventListener("click", newChat);
byId("search-open").addEventListener("click", openSearch);
byId("help-open").addEventListener("click", () => byId("help").showModal());
byId("archive").addEventListener("click", ({ currentTarget }) => openMenu(currentTarget, archiveItems()));
document.addEventListener("click", ({ target }) => {
  if (target.matches(".idea")) composer.submit(target.textContent);
  if (target.matches("dialog .done")) target.closest("dialog").close();
});

await Promise.allSettled([offerModels(), refresh()]);
await route();
document.documentElement.classList.add("ready");
navigator.serviceWorker?.register("/service-worker.js").catch(() => {}); // only what makes it an app is missing then
