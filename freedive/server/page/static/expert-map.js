// A picture of all experts: a row for each layer, a cell for each expert. What the newest token woke lights up and fades.

const FADE = 0.72; // what is left of a light after another token
const IDLE = 0.07; // how visible an expert is that was never used,
const BUSY = 0.4; // and the busiest one of its layer while it sleeps
const ROOMY = 6; // pixels of a cell that has a gap to the next one
const HEIGHT = { least: 56, most: 168, row: 14 }; // pixels of the picture, and of a layer where there is room

const still = matchMedia("(prefers-reduced-motion: reduce)");

export class ExpertMap {
  #cells = document.createElement("canvas"); // a pixel for each expert

  constructor(canvas) {
    this.canvas = canvas;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new MutationObserver(() => this.draw()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  }

  show(balance) {
    this.balance = balance;
    this.chosen = null;
    this.#cells.width = this.columns = Math.max(...balance.uses.map((uses) => uses.length));
    this.#cells.height = this.rows = balance.uses.length;
    this.lights = new Float32Array(this.columns * this.rows);
    this.fromDisk = new Uint8Array(this.columns * this.rows);
    this.canvas.style.height = `${Math.min(HEIGHT.most, Math.max(HEIGHT.least, this.rows * HEIGHT.row))}px`;
  }

  wake({ woken }) {
    const rest = still.matches ? 0 : FADE;
    for (let cell = 0; cell < this.lights.length; cell++) this.lights[cell] *= rest;
    for (const { layer, expert, missed } of woken) {
      this.lights[layer * this.columns + expert] = 1;
      this.fromDisk[layer * this.columns + expert] = missed;
    }
  }

  // The token whose experts alone are lit, or null.
  choose(token) {
    this.chosen = token;
    this.draw();
  }

  // The layer and the expert at a point of the page.
  at({ clientX, clientY }) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    const layer = Math.floor(((clientY - top) / height) * this.rows);
    const expert = Math.floor(((clientX - left) / width) * this.columns);
    return expert in (this.balance?.uses[layer] ?? {}) ? { layer, expert } : null;
  }

  draw() {
    const { canvas, rows, columns } = this;
    const scale = devicePixelRatio;
    const width = Math.round(canvas.clientWidth * scale);
    const height = Math.round(canvas.clientHeight * scale);
    if (!this.balance || !width) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    this.#paint();
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.#cells, 0, 0, width, height);
    const gap = Math.ceil(scale);
    if (width / columns >= ROOMY * scale) {
      for (let i = 1; i < columns; i++) context.clearRect(Math.round((i * width) / columns) - gap, 0, gap, height);
    }
    if (height / rows >= ROOMY * scale) {
      for (let i = 1; i < rows; i++) context.clearRect(0, Math.round((i * height) / rows) - gap, width, gap);
    }
  }

  #paint() {
    const { lights, fromDisk } = this.chosen ? this.#ofChosen() : this;
    const style = getComputedStyle(this.canvas);
    const colours = [numbers(style.color), numbers(style.outlineColor)]; // from memory, from disk
    const context = this.#cells.getContext("2d");
    const image = context.createImageData(this.columns, this.rows);
    const dimmed = this.chosen ? 0.5 : 1;
    this.balance.uses.forEach((uses, layer) => {
      const most = Math.max(1, ...uses);
      uses.forEach((count, expert) => {
        const cell = layer * this.columns + expert;
        const asleep = (IDLE + (BUSY - IDLE) * (count / most)) * dimmed;
        const isLit = lights[cell] > asleep;
        image.data.set(colours[isLit ? fromDisk[cell] : 0], 4 * cell);
        image.data[4 * cell + 3] = 255 * (isLit ? lights[cell] : asleep);
      });
    });
    context.putImageData(image, 0, 0);
  }

  #ofChosen() {
    const lights = new Float32Array(this.lights.length);
    const fromDisk = new Uint8Array(this.lights.length);
    for (const { layer, expert, missed } of this.chosen.woken) {
      lights[layer * this.columns + expert] = 1;
      fromDisk[layer * this.columns + expert] = missed;
    }
    return { lights, fromDisk };
  }
}

// Red, green and blue of a computed colour.
const numbers = (colour) => colour.match(/[\d.]+/g).slice(0, 3).map(Number);
