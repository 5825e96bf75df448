// What a model answered, as something to look at.

import { el, percent, svg } from "./dom.js";

// An answer's label, probabilities and text, named by the server, by the model's own code, or by
// `labels` if there is a share for each.
export function partsOf({ prediction, ...answer }, labels) {
  if (typeof prediction === "string") return { ...answer, text: prediction };
  if (!Array.isArray(prediction)) return { ...Object(prediction), ...answer };
  const isShares = prediction.every((share) => share >= 0 && share <= 1);
  if (!isShares || !labels?.length || prediction.length !== labels.length) return answer;
  const probabilities = Object.fromEntries(labels.map((label, i) => [label, prediction[i]]));
  return { probabilities, label: labels[prediction.indexOf(Math.max(...prediction))], ...answer };
}

function bars(probabilities) {
  const best = Object.entries(probabilities).sort((a, b) => b[1] - a[1]).slice(0, 10);
  const rows = best.map(([label, value]) => {
    const bar = el("progress", { value, "aria-label": label });
    return el("li", {}, el("span", {}, label), bar, el("span", { class: "num" }, percent(value)));
  });
  return el("ol", { class: "bars" }, ...rows);
}

export function showAnswer(answer, known) {
  const nodes = [];
  const { label, probabilities, text } = partsOf(answer, known);
  const { prediction } = answer;
  const headline = label ?? (typeof prediction === "number" && +prediction.toPrecision(9));
  if (headline !== false) nodes.push(el("p", { class: "big" }, String(headline)));
  if (text && text !== label) nodes.push(el("p", { class: "said" }, String(text)));
  if (probabilities) nodes.push(bars(probabilities));
  const raw = el("pre", { tabindex: 0 }, JSON.stringify(answer, null, 1));
  return nodes.length ? [...nodes, el("details", {}, el("summary", {}, "JSON"), raw)] : [raw];
}

// A column for each class, in fixed order, so that it stays calm while answers change.
export function histogram(labels, probabilities) {
  const share = (label) => probabilities[label] ?? 0;
  const best = labels.reduce((a, b) => (share(b) > share(a) ? b : a));
  const step = 100 / labels.length;
  const columns = labels.flatMap((label, index) => {
    const place = { x: index * step + 1, width: step - 2, rx: 1 };
    const height = 40 * share(label);
    return [
      svg("rect", { ...place, class: "track", height: 40 }),
      svg("rect", { ...place, class: "fill", y: 40 - height, height }),
      svg("text", { x: (index + 0.5) * step, y: 50, class: label === best && "best" }, label),
    ];
  });
  const name = `${best}: ${percent(share(best))}`;
  const view = { viewBox: "0 0 100 52", class: "histogram", role: "img", "aria-label": name };
  return svg("svg", view, ...columns);
}

export function sparkline(values, length) {
  const top = Math.max(...values, 1e-9);
  const start = length - values.length;
  const line = values.map((value, i) => `${start + i},${28 - (26 * value) / top}`).join(" ");
  const view = { viewBox: `0 0 ${length - 1} 30`, preserveAspectRatio: "none", class: "spark" };
  return svg("svg", { ...view, "aria-hidden": "true" },
    svg("polygon", { points: `${start},30 ${line} ${length - 1},30` }),
    svg("polyline", { points: line }));
}
