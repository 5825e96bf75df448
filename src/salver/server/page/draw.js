// The drawing area: every model tagged "digits" answers while one draws.

import { el, find, number, setText } from "./dom.js";
import { predict, predictPath } from "./api.js";
import { histogram, labelOf, probabilitiesOf, textOf } from "./answer.js";

const SIZE = 280;
const PEN = 24;
const PAUSE_MS = 60;

const canvas = find("canvas");
const ink = canvas.getContext("2d", { willReadFrequently: true });
const cells = find("cells").getContext("2d");
const readers = new Map();
let stroke = 0;
let pen = null;
let frame = 0;
let sending = false;

// The drawing cut out, centred and averaged to 8x8, as the models were trained: 0 paper, 16 ink.
export function reduce({ data, width, height }) {
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!data[4 * (y * width + x) + 3]) continue;
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = y;
    }
  }
  if (right < 0) return null;
  const side = Math.max(right - left, bottom - top) + 1;
  const x0 = (side - (right - left + 1)) / 2 - left;
  const y0 = (side - (bottom - top + 1)) / 2 - top;
  const values = new Array(64).fill(0);
  for (let y = top; y <= bottom; y++) {
    const row = 8 * Math.floor(((y + y0 + 0.5) * 8) / side);
    for (let x = left; x <= right; x++) {
      const column = Math.floor(((x + x0 + 0.5) * 8) / side);
      values[row + column] += data[4 * (y * width + x) + 3] / 255;
    }
  }
  const area = (side / 8) ** 2;
  return values.map((value) => Math.min(16, Math.round((160 * value) / area) / 10));
}

function preview(values) {
  const image = cells.createImageData(8, 8);
  values?.forEach((value, index) => (image.data[4 * index + 3] = (255 * value) / 16));
  cells.putImageData(image, 0, 0);
}

function picture() {
  const flat = el("canvas", { width: SIZE, height: SIZE });
  const paper = flat.getContext("2d");
  paper.fillStyle = "#fff";
  paper.fillRect(0, 0, SIZE, SIZE);
  paper.drawImage(canvas, 0, 0);
  return new Promise((done) => flat.toBlob(done, "image/png"));
}

class Reader {
  constructor(model) {
    this.label = el("p", { class: "big" });
    this.time = el("span", { class: "num hint" });
    this.chart = el("div", { class: "chart" });
    this.said = el("p", { class: "hint said" });
    const head = el("div", { class: "bar" }, el("h3", {}, model.name), this.time);
    const body = el("div", { class: "reading" }, this.label, this.chart);
    this.node = el("li", { class: "card" }, head, body, this.said);
    this.seen = 0;
    this.busy = false;
    this.update(model);
  }

  update(model) {
    this.model = model;
    this.node.classList.toggle("off", model.state !== "READY");
    if (!this.seen) setText(this.said, model.description ?? "");
  }

  // Keeps one request on its way; what is drawn meanwhile is sent when its answer is there.
  async ask(values) {
    if (this.busy || this.model.state !== "READY") return;
    this.busy = true;
    const asked = stroke;
    try {
      const [method] = this.model.methods;
      const asPicture = method.inputs[0]?.content === "image";
      const request = asPicture
        ? { body: await picture(), type: "image/png" }
        : { body: JSON.stringify({ input: values }), type: "application/json" };
      const { answer, ms } = await predict(predictPath(this.model, method), request);
      this.show(answer, ms);
    } catch (error) {
      this.clear(error.message);
    }
    this.seen = asked;
    this.busy = false;
    if (asked !== stroke) schedule();
  }

  show(answer, ms) {
    if (isBlank) return;
    this.read = labelOf(answer) ?? JSON.stringify(answer.prediction);
    setText(this.label, String(this.read).slice(0, 12));
    setText(this.time, `${number(ms)} ms`);
    setText(this.said, textOf(answer));
    const shares = probabilitiesOf(answer);
    const labels = this.model.labels?.length ? this.model.labels : Object.keys(shares ?? {});
    this.chart.replaceChildren(...(shares && labels.length ? [histogram(labels, shares)] : []));
    agree();
  }

  clear(why = "") {
    this.read = undefined;
    setText(this.label, "");
    setText(this.time, "");
    setText(this.said, why || (this.model.description ?? ""));
    this.chart.replaceChildren();
  }
}

let isBlank = true;

function agree() {
  const said = [...readers.values()].map((r) => r.read).filter((label) => label !== undefined);
  const counts = Map.groupBy ? Map.groupBy(said, (label) => String(label)) : new Map();
  const [best] = [...counts].sort((a, b) => b[1].length - a[1].length);
  if (!best) return;
  const [label, votes] = best;
  const all = votes.length === said.length && said.length > 1;
  const who = all ? `All ${said.length} models` : `${votes.length} of ${said.length} models`;
  setText(find("verdict"), `${who} read ${label}.`);
}

function schedule() {
  if (sending) return;
  sending = true;
  setTimeout(() => {
    sending = false;
    const values = reduce(ink.getImageData(0, 0, SIZE, SIZE));
    preview(values);
    if (values) for (const reader of readers.values()) reader.ask(values);
  }, PAUSE_MS);
}

function line(from, to) {
  ink.lineWidth = PEN;
  ink.lineCap = ink.lineJoin = "round";
  ink.beginPath();
  ink.moveTo(from.x, from.y);
  ink.lineTo(to.x, to.y);
  ink.stroke();
  isBlank = false;
  stroke++;
  schedule();
}

function clear() {
  ink.clearRect(0, 0, SIZE, SIZE);
  isBlank = true;
  stroke++;
  preview(null);
  for (const reader of readers.values()) reader.clear();
  setText(find("verdict"), "");
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const scale = SIZE / box.width;
  return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  canvas.setPointerCapture(event.pointerId);
  pen = place(event);
  line(pen, pen);
});
canvas.addEventListener("pointermove", (event) => {
  if (!canvas.hasPointerCapture(event.pointerId)) return;
  for (const step of event.getCoalescedEvents?.() ?? [event]) {
    const to = place(step);
    line(pen, to);
    pen = to;
  }
});

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const cursor = { x: SIZE / 2, y: SIZE / 4, down: false };
canvas.addEventListener("keydown", (event) => {
  const arrow = ARROWS[event.key];
  if (arrow) {
    const from = { ...cursor };
    cursor.x = Math.max(0, Math.min(SIZE, cursor.x + 10 * arrow[0]));
    cursor.y = Math.max(0, Math.min(SIZE, cursor.y + 10 * arrow[1]));
    if (cursor.down) line(from, cursor);
  } else if (event.key === " ") {
    cursor.down = !cursor.down;
    if (cursor.down) line(cursor, cursor);
  } else if (event.key === "Delete" || event.key === "Backspace") {
    cursor.down = false;
    clear();
  } else return;
  event.preventDefault();
});
find("clear").addEventListener("click", clear);

// Called with every poll: shows the area if a model carries the tag.
export function updateReaders(models) {
  const tagged = models.filter((model) => model.tags?.includes("digits") && model.methods?.length);
  find("draw").hidden = !tagged.length;
  for (const [name, reader] of readers) {
    if (tagged.some((model) => model.name === name)) continue;
    reader.node.remove();
    readers.delete(name);
  }
  for (const model of tagged) {
    const known = readers.get(model.name);
    if (known) known.update(model);
    else {
      const reader = new Reader(model);
      readers.set(model.name, reader);
      find("readers").append(reader.node);
    }
  }
}
