// Two answers to one question, side by side, and the choice of the second model.

import { byId, element, textButton } from "./dom.js";
import { chosenModel } from "./models.js";

const [toggle, other] = ["beside", "model-beside"].map(byId);

// `change` is called with the second model, or with undefined when one answers alone.
export function onBeside(change) {
  toggle.addEventListener("click", () => {
    const isOn = toggle.getAttribute("aria-pressed") !== "true";
    const names = [...other.options].map(({ value }) => value);
    const name = isOn ? (names.find((each) => each !== chosenModel()) ?? names[0]) : undefined;
    showBeside(name);
    change(name);
  });
  other.addEventListener("change", () => change(other.value));
}

export function showBeside(name) {
  toggle.hidden = other.options.length < 2;
  toggle.setAttribute("aria-pressed", Boolean(name));
  other.hidden = !name;
  if (name) other.value = name;
}

// The newest answer of each model to the question that the path ends with; null if they are not two.
export function pairOf(tree, path, models) {
  const last = path.at(-1);
  if (last?.role !== "assistant" || models[0] === models[1]) return null;
  const answers = tree.children(last.parent);
  const pair = models.map((model) => answers.findLast((answer) => answer.model === model));
  return pair.every(Boolean) && pair.some(({ id }) => id === last.id) ? pair : null;
}

// Columns of the views of two answers; `keep` continues with one of them.
export function pairNode(pair, views, keep) {
  const columns = pair.map((answer, index) => {
    const head = element("h3", {}, answer.model);
    const button = textButton("continue_with", () => keep(answer));
    const column = element("section", { className: "column" }, head, views[index].node, button);
    column.setAttribute("aria-label", answer.model);
    return column;
  });
  return element("div", { className: "pair" }, ...columns);
}
