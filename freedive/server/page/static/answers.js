// An answer that grows: its events come from the server, which goes on without us.

import { Away, events, Refused } from "./api.js";

const RETRY_MS = 1000;

// Shows the running answer at `path` until it ends, and returns the finished message. A connection that breaks is made
// again: the first event has all that there is. Throws Refused, and whatever `signal` was aborted with.
export async function follow(path, view, signal, change) {
  for (;;) {
    try {
      for await (const event of events(path, signal)) {
        if (event.finished) return event.message;
        change(() => (event.snapshot ? view.show(event.snapshot) : view.grow(event)));
      }
    } catch (error) {
      if (signal.aborted || error instanceof Refused) throw error;
      if (!(error instanceof Away || error instanceof TypeError)) throw error; // a fault of ours
    }
    await pause(signal);
  }
}

function pause(signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, RETRY_MS);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)));
  });
}
