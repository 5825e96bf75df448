// The page: polls the server's state once a second and lets one try every model.

import { arrange, copyable, el, find, nextId, number, onFilter, onKey, setText } from "./dom.js";
import { getJson, predict, predictPath, useKey } from "./api.js";
import { buildForm, curlCommands } from "./form.js";
import { showAnswer, sparkline } from "./answer.js";
import { updateReaders } from "./draw.js";

const POLL_MS = 1000;
const HISTORY = 60;
const STATISTICS = {
  "req/s": "requests_per_s",
  "p50 ms": "p50_ms",
  "p99 ms": "p99_ms",
  queue: "queue_depth",
  batch: "avg_batch",
  requests: "requests_total",
  errors: "errors_total",
};
const rates = [];
const latencies = [];
let rows = new Map();
let keyed = false;

// An opened model: a form, its answer, and the same request as commands.
class Panel {
  constructor(model) {
    this.model = model;
    this.form = el("form", { class: "try" });
    this.result = el("div", { "aria-live": "polite" });
    this.doors = el("div", { class: "doors" });
    this.node = el("div", { class: "panel", id: nextId() }, el("p", {}, model.description));
    if (model.methods.length > 1) this.node.append(this.chooser(model.methods));
    this.node.append(el("div", { class: "two" }, this.form, this.result), this.doors);
    this.form.addEventListener("input", () => this.refresh());
    this.form.addEventListener("submit", (event) => this.run(event));
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
    this.choose(model.methods[0]);
  }

  chooser(methods) {
    const select = el("select", {}, ...methods.map(({ name }) => el("option", {}, name)));
    select.addEventListener("change", () => this.choose(methods[select.selectedIndex]));
    return el("label", { class: "field" }, "method", select);
  }

  choose(method) {
    this.method = method;
    this.inputs = buildForm(this.model, method);
    this.button = el("button", { class: "primary" }, "Run");
    const keys = el("span", { class: "hint" }, "Ctrl + Enter");
    this.form.replaceChildren(this.inputs.node, el("div", { class: "bar" }, this.button, keys));
    this.figures = this.commands().map(([title]) => copyable(title));
    this.doors.replaceChildren(...this.figures.map((figure) => figure.node));
    this.result.replaceChildren();
    this.refresh();
  }

  commands() {
    return curlCommands(this.model, this.method, this.inputs.values(), keyed);
  }

  refresh() {
    const commands = this.commands();
    if (this.form.querySelector("textarea:invalid")) return;
    commands.forEach(([, command], i) => setText(this.figures[i].code, command));
  }

  async run(event) {
    event.preventDefault();
    this.button.disabled = true;
    const show = (...nodes) => this.result.replaceChildren(...nodes);
    try {
      const path = predictPath(this.model, this.method);
      const onAnswer = (answer) => show(...showAnswer(answer, this.model.labels));
      const { answer, ms } = await predict(path, await this.inputs.request(), onAnswer);
      const version = answer.model_version ? `, version ${answer.model_version}` : "";
      const note = `${number(ms)} ms as this browser sees it${version}`;
      show(...showAnswer(answer, this.model.labels), el("p", { class: "hint num" }, note));
    } catch (error) {
      show(el("p", { class: "alert" }, error.message));
    }
    this.button.disabled = false;
  }
}

const signature = ({ version, methods, example }) => JSON.stringify([version, methods, example]);

class Row {
  constructor(model) {
    this.signature = signature(model);
    this.state = el("span", { class: "state" });
    this.about = el("span", { class: "hint" });
    this.reason = el("p", { class: "alert" });
    this.values = Object.keys(STATISTICS).map(() => el("dd", { class: "num" }));
    this.button = el("button", { class: "name", "aria-expanded": "false" }, model.name);
    this.button.addEventListener("click", () => this.toggle());
    const statistics = Object.keys(STATISTICS).map((name, i) =>
      el("div", {}, el("dt", {}, name), this.values[i]));
    this.node = el("li", { class: "card" },
      el("div", { class: "head" },
        el("div", { class: "title" }, el("h3", {}, this.button), this.state, this.about),
        el("dl", { class: "stats" }, ...statistics)),
      this.reason);
  }

  update(model) {
    this.model = model;
    const { name, runtime = "", version, versions, tags, state, reason = "" } = model;
    const which = versions.length > 1 ? `${version} of ${versions.join(", ")}` : version;
    this.words = [name, runtime, state, ...tags].join(" ");
    this.node.dataset.state = state;
    setText(this.state, state.toLowerCase());
    setText(this.about, [`version ${which}`, runtime].filter(Boolean).join(" · "));
    setText(this.reason, reason);
    this.reason.hidden = !reason;
    this.button.disabled = !model.methods.length;
    Object.values(STATISTICS).forEach((key, i) => setText(this.values[i], number(model[key])));
    this.values.at(-1).classList.toggle("bad", model.errors_total > 0);
  }

  toggle() {
    if (!this.panel) {
      this.panel = new Panel(this.model).node;
      this.panel.hidden = true;
      this.node.append(this.panel);
      this.button.setAttribute("aria-controls", this.panel.id);
    }
    this.panel.hidden = !this.panel.hidden;
    this.button.setAttribute("aria-expanded", String(!this.panel.hidden));
  }
}

// Rows keep their nodes, so that what one types survives the next poll.
function updateRows(models) {
  const known = rows;
  rows = new Map();
  for (const model of models) {
    const old = known.get(model.name);
    const row = old?.signature === signature(model) ? old : new Row(model);
    row.update(model);
    rows.set(model.name, row);
  }
  const nodes = [...rows.values()].map((row) => row.node);
  arrange(find("list"), nodes);
  find("empty").hidden = nodes.length > 0;
  find("filter").hidden = nodes.length < 8;
  filter();
}

const filter = onFilter((matches) => {
  for (const { words, node } of rows.values()) node.hidden = !matches(words);
});

function duration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const [unit, size] = units.find((pair) => seconds >= pair[1]) ?? units[3];
  return `${Math.floor(seconds / size)} ${unit}`;
}

function updateServer({ server, models }) {
  const facts = { version: server.version, up: duration(server.uptime_s), device: server.device };
  find("facts").replaceChildren(...Object.entries(facts).map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  const sum = (of) => models.reduce((total, model) => total + (of(model) || 0), 0);
  const total = sum((model) => model.requests_per_s);
  const median = total ? sum((model) => model.requests_per_s * model.p50_ms) / total : NaN;
  const chart = (values, value, title) => {
    values.push(value || 0);
    values.splice(0, values.length - HISTORY);
    const text = el("p", {}, el("strong", { class: "num" }, number(value)), ` ${title}`);
    return el("div", { class: "card" }, text, sparkline(values, HISTORY));
  };
  find("pulse").replaceChildren(chart(rates, server.requests_per_s, "requests/s"),
    chart(latencies, median, "ms median latency"));
}

let timer = 0;

async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  let problem = "";
  try {
    const state = await getJson("/page/state");
    keyed = state.server.api_key_required;
    updateServer(state);
    updateReaders(state.models);
    updateRows(state.models);
  } catch (error) {
    keyed ||= error.status === 401;
    problem = error.message;
  }
  setText(find("alert"), problem);
  find("alert").hidden = !problem;
  find("key").hidden = !keyed;
  clearTimeout(timer);
  timer = setTimeout(poll, POLL_MS);
}

onKey((key) => {
  useKey(key);
  poll();
});
document.addEventListener("visibilitychange", poll);
poll();
