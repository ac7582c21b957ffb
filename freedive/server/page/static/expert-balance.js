// How evenly an answer used the experts of each layer, and what came from disk. It shows nothing.

const NONE = 65535; // where a layer chooses fewer experts than another

export class Balance {
  tokens = 0;
  chosen = 0; // experts that were woken
  missed = 0; // those of them that were read from disk

  // `sizes`: the number of experts of each layer.
  constructor(sizes) {
    this.uses = sizes.map((size) => new Uint32Array(size));
    this.missedIn = sizes.map(() => 0);
  }

  add({ woken }) {
    this.tokens += 1;
    for (const { layer, expert, missed } of woken) {
      this.uses[layer][expert] += 1;
      this.missedIn[layer] += missed;
      this.missed += missed;
    }
    this.chosen += woken.length;
  }

  // `skew`: the load of the busiest expert in units of the mean; `unused`: the share of experts that never ran.
  layer(index) {
    const uses = this.uses[index];
    const all = uses.reduce((sum, count) => sum + count, 0);
    const unused = uses.filter((count) => count === 0).length / uses.length;
    return { skew: all ? (Math.max(...uses) * uses.length) / all : 1, unused, missed: this.missedIn[index] };
  }

  // The means over all layers.
  get mean() {
    const layers = this.uses.map((_, index) => this.layer(index));
    const mean = (name) => layers.reduce((sum, layer) => sum + layer[name], 0) / layers.length;
    return { skew: mean("skew"), unused: mean("unused") };
  }
}

// A token of the server, with the list of the experts that it woke: { layer, expert, missed }.
export function unpacked(token, numLayers) {
  const bytes = Uint8Array.from(atob(token.experts), (char) => char.charCodeAt(0));
  const missed = new Set(token.missed);
  const all = [...new Uint16Array(bytes.buffer)];
  const perLayer = all.length / numLayers;
  const place = (expert, index) => ({ layer: Math.floor(index / perLayer), expert, missed: missed.has(index) });
  return { ...token, woken: all.map(place).filter(({ expert }) => expert !== NONE) };
}
