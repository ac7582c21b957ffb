// Calls of tools in an answer: the question before each, and what came of it.

import { element, icon, textButton } from "./dom.js";
import { word } from "./translations.js";

const KNOWN = ["calculator", "files"];
const ANSWERS = { allow_once: "once", allow_always: "always", refuse: "refuse" };

const nameOf = ({ name }) => (KNOWN.includes(name) ? word(name) : name);

// Asks about a call; `decide` is called with the reader's answer.
export function question(call, decide) {
  const text = word("asks", { tool: nameOf(call) });
  const buttons = Object.entries(ANSWERS).map(([key, answer]) =>
    textButton(key, () => {
      for (const button of buttons) button.disabled = true;
      decide(answer);
    }),
  );
  const node = element(
    "div",
    { className: "ask" },
    element("p", {}, text),
    element("pre", { tabIndex: 0 }, given(call)),
    element("div", { className: "buttons" }, ...buttons),
  );
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", text);
  return node;
}

export function report(call) {
  const refused = call.state === "refused" ? ` · ${word("refused")}` : "";
  const summary = element("summary", {}, icon("right"), element("span", {}, `${nameOf(call)}${refused}`));
  return element("details", { className: "thoughts call" }, summary, element("div", {}, `${given(call)}\n\n${call.result}`.trim()));
}

// The arguments by their names, as they will be read; what is not JSON is shown as it is.
function given({ arguments: text }) {
  try {
    const values = Object.entries(JSON.parse(text));
    return values.map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join("\n");
  } catch {
    return text;
  }
}
