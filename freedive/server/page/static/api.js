// Requests to the server, in JSON, and its events.

import { newKey } from "./session.js";
import { word } from "./translations.js";

const RETRY_MS = 2000;

// What the server refused, with its reason.
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export class Away extends Error {}

export const away = new EventTarget(); // "away" and "back"
let isAway = false;

export const get = (path, signal) => ask("GET", path, undefined, signal);
export const post = (path, body = {}, signal) => ask("POST", path, body, signal);
export const patch = (path, body) => ask("PATCH", path, body);
export const remove = (path) => ask("DELETE", path);

async function ask(method, path, body, signal) {
  return (await respond(method, path, body, signal)).json();
}

// Asks for a key as long as the server refuses the one there is.
async function respond(method, path, body, signal) {
  const headers = body && { "Content-Type": "application/json" };
  const send = () => reach(path, { method, headers, body: body && JSON.stringify(body), signal });
  let response = await send();
  while (response.status === 401) {
    await newKey();
    response = await send();
  }
  if (!response.ok) throw new Refused(await reason(response), response.status);
  return response;
}

async function reach(path, options) {
  try {
    const response = await fetch(path, options);
    tell(false);
    return response;
  } catch (error) {
    if (options.signal?.aborted) throw error;
    tell(true);
    throw new Away(word("unreachable"));
  }
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

function tell(now) {
  if (now === isAway) return;
  isAway = now;
  away.dispatchEvent(new Event(now ? "away" : "back"));
  if (now) look();
}

// Looks whether the server is back.
function look() {
  setTimeout(async () => {
    try {
      await fetch("/health");
      tell(false);
    } catch {
      look();
    }
  }, RETRY_MS);
}

// The events of a path, until the server ends them. EventSource would hide why a request was refused.
export async function* events(path, signal) {
  const response = await respond("GET", path, undefined, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (let chunk = await reader.read(); !chunk.done; chunk = await reader.read()) {
    const parts = (buffer + chunk.value).split("\n\n");
    buffer = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
  }
}
