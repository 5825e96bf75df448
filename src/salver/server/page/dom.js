// Building blocks of both pages. What is shown passes through text nodes and attributes only.

export const find = (id) => document.getElementById(id);

function build(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(key, "");
    else if (value !== false) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

export const el = (tag, attributes = {}, ...children) =>
  build(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// Touches the document only if the text differs, so that a selection survives polling.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Makes `nodes` the children of `list` and leaves alone what is in its place, with its focus.
export function arrange(list, nodes) {
  for (const old of [...list.children]) if (!nodes.includes(old)) old.remove();
  nodes.forEach((node, i) => {
    if (list.children[i] !== node) list.insertBefore(node, list.children[i]);
  });
}

export function number(value) {
  if (!Number.isFinite(value)) return "–";
  if (value >= 1e5) return `${(value / 1e3).toFixed(0)} k`;
  return String(+value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0));
}

export const percent = (share) => `${+(100 * share).toFixed(1)} %`;

// A word for the shell.
export const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

let count = 0;
export const nextId = () => `field-${++count}`;

// Code with a button that copies it: the figure's `node`, and where the `code` goes.
export function copyable(title) {
  const code = el("code");
  const button = el("button", { class: "copy", "aria-label": `Copy ${title}` }, "Copy");
  button.addEventListener("click", () => {
    // Selecting works on plain HTTP as well, where browsers withhold the clipboard.
    getSelection().selectAllChildren(code);
    setText(button, document.execCommand("copy") ? "Copied" : "Selected");
    setTimeout(() => setText(button, "Copy"), 1500);
  });
  const head = el("figcaption", {}, el("span", {}, title), button);
  return { node: el("figure", { class: "code" }, head, el("pre", { tabindex: 0 }, code)), code };
}

// Asks for the API key where the server wants one.
export function onKey(use) {
  find("key").addEventListener("submit", (event) => {
    event.preventDefault();
    use(find("secret").value);
  });
}

// Calls `show` with a test whether a text has all the words of the filter; gives what repeats it.
export function onFilter(show) {
  const apply = () => {
    const words = find("filter").value.toLowerCase().split(/\s+/);
    show((text) => words.every((word) => text.toLowerCase().includes(word)));
  };
  find("filter").addEventListener("input", apply);
  return apply;
}
