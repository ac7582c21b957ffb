// Server-sent events of a POST request, which EventSource cannot make.

import { authorization, newKey } from "./key.js";

export class Refused extends Error {}

export async function* post(url, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await authorized(url, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw new Refused((await response.json()).error.message);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (let chunk = await reader.read(); !chunk.done; chunk = await reader.read()) {
    const events = (buffer + chunk.value).split("\n\n");
    buffer = events.pop();
    for (const event of events) if (event.startsWith("data: ")) yield JSON.parse(event.slice(6));
  }
}

// A request with the reader's key, who is asked for another one as long as that is refused.
export async function authorized(url, options) {
  const send = () => fetch(url, { ...options, headers: { ...options.headers, ...authorization() } });
  let response = await send();
  while (response.status === 401) {
    await newKey(options.signal);
    response = await send();
  }
  return response;
}
