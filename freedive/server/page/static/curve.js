// The losses of a fine-tuning, drawn and in words.

import { drawn, element } from "./dom.js";
import { number, word } from "./translations.js";

const WIDTH = 400;
const HEIGHT = 120;

export function drawCurve(figure, { trained, held_out: heldOut }) {
  const points = [...trained, ...heldOut];
  if (points.length < 2) return figure.replaceChildren();
  const last = Math.max(...points.map(([step]) => step), 1);
  const most = Math.max(...points.map(([, loss]) => loss), 1e-3);
  const at = ([step, loss]) => `${((step / last) * WIDTH).toFixed(1)},${(HEIGHT * (1 - loss / most)).toFixed(1)}`;
  const picture = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  const said = caption(trained, heldOut);
  picture.setAttribute("aria-label", said);
  picture.append(drawn("path", { class: "axis", d: `M0,0V${HEIGHT}H${WIDTH}` }));
  for (const [name, line] of Object.entries({ trained, held_out: heldOut })) {
    if (line.length > 1) picture.append(drawn("polyline", { class: name, points: line.map(at).join(" ") }));
  }
  figure.replaceChildren(picture, element("figcaption", {}, said));
}

// What a reader who cannot see the curve has to know.
function caption(trained, heldOut) {
  const texts = [["loss_trained", trained], ["loss_held_out", heldOut]]
    .filter(([, line]) => line.length)
    .map(([key, line]) => word(key, { first: number(line[0][1], 3), last: number(line.at(-1)[1], 3) }));
  return texts.join(" · ");
}
