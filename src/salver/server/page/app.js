// The page: polls the server's state once a second and lets one try every model.

import { copyable, el, fact, find, nextId, number, setText } from "./dom.js";
import { getJson, predict, predictPath, useKey } from "./api.js";
import { buildForm, curlCommands } from "./form.js";
import { showAnswer, sparkline } from "./answer.js";
import { updateReaders } from "./draw.js";

const POLL_MS = 1000;
const HISTORY = 60;
const rows = new Map();
const history = { rate: [], p50: [] };
let keyed = false;

function duration(seconds) {
  const [days, hours, minutes] = [seconds / 86400, (seconds / 3600) % 24, (seconds / 60) % 60];
  if (days >= 1) return `${Math.floor(days)} d ${Math.floor(hours)} h`;
  if (seconds >= 3600) return `${Math.floor(hours)} h ${Math.floor(minutes)} min`;
  return seconds >= 60 ? `${Math.floor(minutes)} min` : `${Math.floor(seconds)} s`;
}

// Opened models: a form, the answer, and the same request as commands.
class Panel {
  constructor(model) {
    this.id = nextId();
    this.node = el("div", { class: "panel", id: this.id });
    this.update(model);
    const { methods } = model;
    this.form = el("form", { class: "try", onsubmit: (event) => this.run(event) });
    this.result = el("div", { class: "result", "aria-live": "polite" });
    this.doors = el("div", { class: "doors" });
    if (model.description) this.node.append(el("p", {}, model.description));
    const labels = (model.labels ?? []).slice(0, 20).join(", ");
    const facts = el("dl", { class: "facts" });
    if (model.versions?.length > 1) facts.append(fact("versions", model.versions.join(", ")));
    if (labels) facts.append(fact("labels", labels));
    if (facts.childElementCount) this.node.append(facts);
    if (methods.length > 1) this.node.append(this.chooser(methods));
    this.node.append(el("div", { class: "two" }, this.form, this.result), this.doors);
    this.form.addEventListener("input", () => this.refresh());
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
    this.choose(methods[0]);
  }

  update(model) {
    this.model = model;
  }

  chooser(methods) {
    const options = methods.map((method) => el("option", {}, method.name));
    const select = el("select", { id: nextId() }, ...options);
    select.addEventListener("change", () => this.choose(methods[select.selectedIndex]));
    return el("div", { class: "field" }, el("label", { for: select.id }, "method"), select);
  }

  choose(method) {
    this.method = method;
    this.inputs = buildForm(this.model, method);
    this.button = el("button", { class: "primary" }, "Run");
    const keys = el("span", { class: "hint" }, "Ctrl + Enter");
    this.form.replaceChildren(this.inputs.node, el("div", { class: "bar" }, this.button, keys));
    this.result.replaceChildren();
    const commands = curlCommands(this.model, method, method.inputs.map(() => null), keyed);
    this.figures = commands.map(([title]) => copyable(title));
    this.doors.replaceChildren(...this.figures.map((figure) => figure.node));
    this.refresh();
  }

  refresh() {
    let values;
    try {
      values = this.inputs.values();
    } catch {
      if (!this.method.inputs.some((spec) => spec.content === "image" || spec.content === "bytes"))
        return; // what is typed is not valid yet
      values = this.method.inputs.map(() => null);
    }
    curlCommands(this.model, this.method, values, keyed).forEach(([, command], index) =>
      setText(this.figures[index].code, command),
    );
  }

  async run(event) {
    event.preventDefault();
    this.button.disabled = true;
    try {
      const request = await this.inputs.request();
      const stream = el("pre", { class: "said" });
      const onText = (text) => {
        setText(stream, text);
        if (!stream.isConnected) this.result.replaceChildren(stream);
      };
      const path = predictPath(this.model, this.method);
      const { answer, ms } = await predict(path, request, onText);
      const version = answer.model_version ? ` · version ${answer.model_version}` : "";
      const time = el("p", { class: "hint num" }, `${number(ms)} ms as this browser sees it${version}`);
      this.result.replaceChildren(...showAnswer(answer), time);
    } catch (error) {
      this.result.replaceChildren(el("p", { class: "alert" }, error.message));
    }
    this.button.disabled = false;
  }
}

const STATISTICS = [
  ["req/s", (model) => number(model.requests_per_s)],
  ["p50 ms", (model) => number(model.p50_ms)],
  ["p99 ms", (model) => number(model.p99_ms)],
  ["queue", (model) => number(model.queue_depth)],
  ["batch", (model) => number(model.avg_batch)],
  ["requests", (model) => number(model.requests_total)],
  ["errors", (model) => number(model.errors_total)],
];

class Row {
  constructor(model) {
    this.signature = Row.signature(model);
    this.state = el("span", { class: "state" });
    this.meta = el("span", { class: "hint" });
    this.values = STATISTICS.map(() => el("dd", { class: "num" }, "–"));
    const toggle = { type: "button", "aria-expanded": "false", onclick: () => this.toggle() };
    this.button = el("button", { class: "name", ...toggle }, model.name);
    const statistics = STATISTICS.map(([name], i) => el("div", {}, el("dt", {}, name), this.values[i]));
    this.reason = el("p", { class: "alert", hidden: true });
    const title = el("div", { class: "title" }, el("h3", {}, this.button), this.state, this.meta);
    const head = el("div", { class: "head" }, title, el("dl", { class: "stats" }, ...statistics));
    this.node = el("li", { class: "card" }, head, this.reason);
    this.update(model);
  }

  static signature({ version, methods, example, labels }) {
    return JSON.stringify([version, methods, example, labels]);
  }

  update(model) {
    this.model = model;
    this.node.dataset.state = model.state;
    setText(this.state, model.state.toLowerCase());
    setText(this.meta, [model.version && `version ${model.version}`, model.runtime]
      .filter(Boolean).join(" · "));
    STATISTICS.forEach(([, read], i) => setText(this.values[i], read(model)));
    this.values.at(-1).classList.toggle("bad", model.errors_total > 0);
    setText(this.reason, model.reason ?? "");
    this.reason.hidden = !model.reason;
    this.button.disabled = !model.methods?.length;
    this.panel?.update(model);
  }

  toggle() {
    const open = this.button.getAttribute("aria-expanded") !== "true";
    this.button.setAttribute("aria-expanded", String(open));
    if (open && !this.panel) {
      this.panel = new Panel(this.model);
      this.button.setAttribute("aria-controls", this.panel.id);
      this.node.append(this.panel.node);
    }
    this.panel.node.hidden = !open;
  }
}

// Rows keep their place and their nodes, so that what one types survives the next poll.
function updateRows(models) {
  const list = find("list");
  for (const [name, row] of rows) {
    const model = models.find((other) => other.name === name);
    if (model && Row.signature(model) === row.signature) continue;
    row.node.remove();
    rows.delete(name);
  }
  models.forEach((model, index) => {
    const row = rows.get(model.name) ?? new Row(model);
    rows.set(model.name, row);
    row.update(model);
    if (list.children[index] !== row.node) list.insertBefore(row.node, list.children[index] ?? null);
  });
  find("empty").hidden = models.length > 0;
  find("filter").hidden = models.length < 8;
  applyFilter();
}

function applyFilter() {
  const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const { model, node } of rows.values()) {
    const text = [model.name, model.runtime, ...(model.tags ?? [])].join(" ").toLowerCase();
    node.hidden = !words.every((word) => text.includes(word));
  }
}

function updateFacts(server) {
  const facts = { version: server.version, up: duration(server.uptime_s), device: server.device };
  const entries = Object.entries(facts);
  const shown = find("facts");
  if (!shown.childElementCount) shown.append(...entries.map(([name]) => fact(name, "")));
  entries.forEach(([, value], i) => setText(shown.children[i].lastChild, String(value)));
}

function updatePulse({ server, models }) {
  const total = models.reduce((sum, model) => sum + model.requests_per_s, 0);
  const weighted = models.reduce((sum, m) => sum + m.requests_per_s * (m.p50_ms ?? 0), 0);
  const now = { rate: server.requests_per_s, p50: total ? weighted / total : 0 };
  const titles = { rate: "requests/s", p50: "median latency, ms" };
  const cards = Object.keys(titles).map((key) => {
    history[key] = [...history[key], now[key]].slice(-HISTORY);
    const value = key === "p50" && !total ? "–" : number(now[key]);
    const text = el("p", {}, el("strong", { class: "num" }, value), ` ${titles[key]}`);
    return el("div", { class: "card" }, text, sparkline(history[key], HISTORY));
  });
  find("pulse").replaceChildren(...cards);
}

function alertUser(text) {
  setText(find("alert"), text);
  find("alert").hidden = !text;
}

async function poll() {
  try {
    const state = await getJson("/page/state");
    keyed = state.server.api_key_required;
    updateFacts(state.server);
    updatePulse(state);
    updateReaders(state.models);
    updateRows(state.models);
    alertUser("");
  } catch (error) {
    keyed ||= error.status === 401;
    alertUser(error.status === 401 ? "This server asks for an API key." : error.message);
  }
  find("key").hidden = !keyed;
}

let timer = 0;
async function follow() {
  clearTimeout(timer);
  if (document.hidden) return;
  await poll();
  clearTimeout(timer);
  timer = setTimeout(follow, POLL_MS);
}

find("key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(find("secret").value);
  follow();
});
find("filter").addEventListener("input", applyFilter);
document.addEventListener("visibilitychange", follow);
follow();
