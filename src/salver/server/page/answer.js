// What a model answered, as something to look at.

import { el, number, percent, svg } from "./dom.js";

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

// The label of an answer, whether the server or the model's own code named it.
export function labelOf({ label, prediction }) {
  return label ?? (isObject(prediction) ? prediction.label : undefined);
}

export function textOf({ prediction }) {
  return isObject(prediction) && typeof prediction.text === "string" ? prediction.text : "";
}

export function probabilitiesOf({ probabilities, prediction }) {
  const found = probabilities ?? (isObject(prediction) ? prediction.probabilities : null);
  return isObject(found) ? found : null;
}

function bars(probabilities) {
  const sorted = Object.entries(probabilities).sort((a, b) => b[1] - a[1]).slice(0, 10);
  const rows = sorted.map(([label, share]) => {
    const bar = el("progress", { max: 1, value: share, "aria-label": label });
    return el("li", {}, el("span", {}, label), bar, el("span", { class: "num" }, percent(share)));
  });
  return el("ol", { class: "bars" }, ...rows);
}

export function showAnswer(answer) {
  const { prediction } = answer;
  const nodes = [];
  const label = labelOf(answer);
  const probabilities = probabilitiesOf(answer);
  if (label != null) nodes.push(el("p", { class: "big" }, String(label)));
  else if (typeof prediction === "number") nodes.push(el("p", { class: "big" }, number(prediction)));
  else if (typeof prediction === "string") nodes.push(el("p", { class: "said" }, prediction));
  if (textOf(answer)) nodes.push(el("p", { class: "said" }, textOf(answer)));
  if (probabilities) nodes.push(bars(probabilities));
  const raw = el("pre", { tabindex: 0 }, JSON.stringify(answer, null, 1));
  if (!nodes.length) return [raw];
  return [...nodes, el("details", {}, el("summary", {}, "JSON"), raw)];
}

// A column for each class, in fixed order, so that it stays calm while answers change.
export function histogram(labels, probabilities) {
  const width = 100 / labels.length;
  const best = labels.reduce((a, b) => ((probabilities[b] ?? 0) > (probabilities[a] ?? 0) ? b : a));
  const columns = labels.flatMap((label, index) => {
    const height = 40 * Math.max(0, Math.min(1, probabilities[label] ?? 0));
    const x = index * width;
    const middle = x + width / 2;
    return [
      svg("rect", { class: "track", x: x + 1, y: 0, width: width - 2, height: 40, rx: 1 }),
      svg("rect", { class: "fill", x: x + 1, y: 40 - height, width: width - 2, height, rx: 1 }),
      svg("text", { x: middle, y: 50, class: label === best ? "best" : "" }, label),
    ];
  });
  const name = `${best}: ${percent(probabilities[best] ?? 0)}`;
  return svg("svg", { viewBox: "0 0 100 52", class: "histogram", role: "img", "aria-label": name },
    ...columns);
}

export function sparkline(values, length = 60) {
  const top = Math.max(...values, 1e-9);
  const start = length - values.length;
  const at = (value, index) => `${start + index},${(28 - 26 * (value / top)).toFixed(1)}`;
  const line = values.map(at).join(" ");
  const area = `${start},30 ${line} ${length - 1},30`;
  const view = { viewBox: `0 0 ${length - 1} 30`, preserveAspectRatio: "none", class: "spark" };
  return svg("svg", { ...view, "aria-hidden": "true" },
    svg("polygon", { points: area }), svg("polyline", { points: line }));
}
