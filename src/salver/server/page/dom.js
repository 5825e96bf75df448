// Building blocks of both pages. Everything shown passes through text nodes and attributes.

export const find = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// Touches the document only if the text differs, so that a selection survives polling.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function number(value) {
  if (value == null || !isFinite(value)) return "–";
  if (value >= 999500) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 9995) return `${(value / 1e3).toFixed(1)} k`;
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : `${+value.toFixed(2)}`;
}

export const percent = (share) => `${(100 * share).toFixed(share > 0.995 || share < 0.1 ? 1 : 0)} %`;

export function fact(name, value) {
  return el("div", {}, el("dt", {}, name), el("dd", {}, value));
}

let fields = 0;
export const nextId = () => `field-${++fields}`;

export function copyable(title) {
  const code = el("code");
  const button = el("button", { type: "button", class: "copy", onclick: copy }, "Copy");
  button.setAttribute("aria-label", `Copy ${title}`);
  async function copy() {
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      // Browsers keep the clipboard for secure origins; the old way works on plain HTTP.
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }
  const head = el("figcaption", {}, el("span", {}, title), button);
  return { node: el("figure", { class: "code" }, head, el("pre", { tabindex: 0 }, code)), code };
}
