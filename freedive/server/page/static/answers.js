// An answer that grows: its events come from the server, which goes on without us.

import { Away, events, Refused } from "./api.js";

const RETRY_MS = 1000;

// Shows the running answer at `path` until it ends, and returns what the message became. A connection that breaks is
// made again: the first event has all that there is. Throws Refused, and whatever `signal` was aborted with.
export async function follow(path, view, signal, change) {
  for (;;) {
    try {
      for await (const event of events(path, signal)) {
        if (event.message) return event.message;
        change(() => (event.snapshot ? view.show(event.snapshot) : view.grow(event)));
        if (event.snapshot && event.snapshot.status !== "running") return ended(event.snapshot);
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

// An answer that had ended before we looked.
const ended = ({ text, thoughts, status, error, calls, meter }) => ({
  content: text,
  reasoning: thoughts,
  status,
  error,
  calls,
  timings: meter,
});
