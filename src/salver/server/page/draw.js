// The drawing area: every model tagged "digits" answers while one draws.

import { arrange, el, find, number, setText } from "./dom.js";
import { predict, predictPath } from "./api.js";
import { histogram, partsOf } from "./answer.js";

const SIZE = 280;
const PEN = 24;
const PAUSE_MS = 60;

const canvas = find("canvas");
const ink = canvas.getContext("2d", { willReadFrequently: true });
const cells = find("cells").getContext("2d");
const readers = new Map();
let drawn = 0; // counts changes, so that a late answer is known to be late
let values = null;
let timer = 0;

// The drawing cut out, centred and averaged to 8x8, as the models were trained: 0 paper, 16 ink.
function reduce({ data }) {
  const inked = [];
  for (let at = 0; at < SIZE * SIZE; at++) {
    if (data[4 * at + 3]) inked.push([at % SIZE, Math.floor(at / SIZE), data[4 * at + 3] / 255]);
  }
  if (!inked.length) return null;
  const widen = (axis) => ([low, high], point) =>
    [Math.min(low, point[axis]), Math.max(high, point[axis] + 1)];
  const ends = (axis) => inked.reduce(widen(axis), [SIZE, 0]);
  const [[left, right], [top, bottom]] = [ends(0), ends(1)];
  const side = Math.max(right - left, bottom - top);
  const cell = (at, low, high) => Math.floor((8 * (at + 0.5 + (side - low - high) / 2)) / side);
  const sums = new Array(64).fill(0);
  for (const [x, y, share] of inked) sums[8 * cell(y, top, bottom) + cell(x, left, right)] += share;
  return sums.map((sum) => Math.min(16, Math.round(160 * sum / (side / 8) ** 2) / 10));
}

function look() {
  timer = 0;
  values = reduce(ink.getImageData(0, 0, SIZE, SIZE));
  const image = cells.createImageData(8, 8);
  values?.forEach((value, i) => (image.data[4 * i + 3] = (255 * value) / 16));
  cells.putImageData(image, 0, 0);
  for (const reader of readers.values()) reader.ask();
}

function changed() {
  drawn++;
  timer ||= setTimeout(look, PAUSE_MS);
}

function picture() {
  const paper = el("canvas", { width: SIZE, height: SIZE });
  const context = paper.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, SIZE, SIZE);
  context.drawImage(canvas, 0, 0);
  return new Promise((done) => paper.toBlob(done));
}

class Reader {
  constructor(model) {
    this.model = model;
    this.label = el("p", { class: "big" });
    this.time = el("span", { class: "num hint" });
    this.chart = el("div");
    this.said = el("p", { class: "hint" });
    this.node = el("li", { class: "card" },
      el("div", { class: "bar" }, el("h3", {}, model.name), this.time),
      el("div", { class: "reading" }, this.label, this.chart), this.said);
    this.show({});
  }

  // Keeps one request on its way; what is drawn meanwhile is sent when its answer is there.
  async ask() {
    if (this.busy) return;
    if (!values) return this.show({});
    this.busy = true;
    const asked = drawn;
    try {
      const [method] = this.model.methods;
      const request = method.inputs[0]?.content === "image"
        ? { body: await picture(), type: "image/png" }
        : { body: JSON.stringify({ input: values }), type: "application/json" };
      const { answer, ms } = await predict(predictPath(this.model, method), request);
      const parts = partsOf(answer, this.model.labels);
      this.show({ ...parts, label: String(parts.label ?? JSON.stringify(answer.prediction)), ms });
    } catch (error) {
      this.show({ text: error.message });
    }
    this.busy = false;
    if (asked !== drawn && !timer) this.ask();
  }

  show({ label = "", probabilities = {}, text = this.model.description, ms }) {
    setText(this.label, label.slice(0, 12));
    setText(this.time, ms ? `${number(ms)} ms` : "");
    setText(this.said, label && text === this.model.description ? "" : text);
    const labels = Object.keys(probabilities);
    this.chart.replaceChildren(...(labels.length ? [histogram(labels, probabilities)] : []));
    compare();
  }
}

function compare() {
  const said = [...readers.values()].map((reader) => reader.label.textContent).filter(Boolean);
  const votes = (label) => said.filter((other) => other === label).length;
  const best = said.reduce((a, b) => (votes(b) > votes(a) ? b : a), "");
  const all = votes(best) === said.length ? "All" : `${votes(best)} of`;
  const who = said.length === 1 ? "The model reads" : `${all} ${said.length} models read`;
  setText(find("verdict"), best ? `${who} ${best}.` : "Every model answers as you draw.");
}

function line(from, to) {
  ink.lineWidth = PEN;
  ink.lineCap = "round";
  ink.beginPath();
  ink.moveTo(from.x, from.y);
  ink.lineTo(to.x, to.y);
  ink.stroke();
  changed();
}

function clear() {
  ink.clearRect(0, 0, SIZE, SIZE);
  changed();
}

const pen = { x: SIZE / 2, y: SIZE / 4, down: false };

function movePen({ clientX, clientY }, draws) {
  const { left, top, width } = canvas.getBoundingClientRect();
  const to = { x: ((clientX - left) * SIZE) / width, y: ((clientY - top) * SIZE) / width };
  if (draws) line(pen, to);
  Object.assign(pen, to);
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  movePen(event, false);
  line(pen, pen);
});
canvas.addEventListener("pointermove", (event) => {
  if (!canvas.hasPointerCapture(event.pointerId)) return;
  for (const step of event.getCoalescedEvents()) movePen(step, true);
});

const ARROWS = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] };
canvas.addEventListener("keydown", (event) => {
  const from = { ...pen };
  const [right, down] = ARROWS[event.key] ?? [0, 0];
  pen.x = Math.max(0, Math.min(SIZE, pen.x + right));
  pen.y = Math.max(0, Math.min(SIZE, pen.y + down));
  if (event.key === " ") pen.down = !pen.down;
  else if (event.key === "Delete") clear();
  else if (!right && !down) return;
  if (pen.down && event.key !== "Delete") line(from, pen);
  event.preventDefault();
});
find("clear").addEventListener("click", clear);

// Called with every poll: the area is there while a ready model carries the tag.
export function updateReaders(models) {
  const tagged = models.filter((m) => m.tags.includes("digits") && m.state === "READY");
  find("draw").hidden = !tagged.length;
  const known = new Map(readers);
  readers.clear();
  for (const model of tagged) {
    const reader = known.get(model.name) ?? new Reader(model);
    readers.set(model.name, Object.assign(reader, { model }));
  }
  arrange(find("readers"), [...readers.values()].map((reader) => reader.node));
}
