// The API documentation: /openapi.json made readable, with nothing from elsewhere.

import { copyable, el, find, onFilter, onKey, quote } from "./dom.js";
import { getJson, useKey } from "./api.js";

const VERBS = ["get", "post", "put", "patch", "delete", "head", "options"];
let spec = {};

function resolve(node) {
  for (let hops = 0; node?.$ref && hops < 16; hops++) {
    const steps = node.$ref.replace(/^#\//, "").split("/");
    const unescape = (step) => step.replaceAll("~1", "/").replaceAll("~0", "~");
    node = steps.reduce((place, step) => place?.[unescape(step)], spec);
  }
  return node ?? {};
}

// A value that fits the schema: what the author gave, else made from the types.
function sample(schema, depth = 0) {
  schema = resolve(schema);
  const given = schema.example ?? schema.examples?.[0] ?? schema.default ?? schema.const;
  if (given !== undefined) return given;
  if (schema.enum) return schema.enum[0];
  const [choice] = schema.oneOf ?? schema.anyOf ?? [];
  if (choice && depth < 6) return sample(choice, depth + 1);
  const type = [schema.type].flat()[0];
  if (depth > 6) return null;
  const below = (part) => sample(part, depth + 1);
  if (schema.allOf) return Object.assign({}, ...schema.allOf.map(below));
  if (type === "object" || schema.properties) {
    const entries = Object.entries(schema.properties ?? {});
    return Object.fromEntries(entries.map(([name, part]) => [name, below(part)]));
  }
  if (type === "array") return schema.items ? [below(schema.items)] : [];
  return { string: "…", integer: 0, number: 0, boolean: true }[type] ?? null;
}

function typeName(schema, depth = 0) {
  const name = schema?.$ref?.split("/").pop();
  schema = resolve(schema);
  if (name) return name;
  const choices = schema.oneOf ?? schema.anyOf;
  if (choices && depth < 4) return choices.map((part) => typeName(part, depth + 1)).join(" or ");
  const type = [schema.type ?? "any"].flat().join(" or ");
  return type === "array" && depth < 4 ? `array of ${typeName(schema.items, depth + 1)}` : type;
}

function table(titles, rows) {
  const cells = (tag, texts) => texts.map((text) => el(tag, {}, text ?? ""));
  return el("table", {}, el("thead", {}, el("tr", {}, ...cells("th", titles))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells("td", row)))));
}

const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

function examples(content) {
  return Object.entries(content ?? {}).flatMap(([type, media]) => {
    const named = Object.entries(media.examples ?? {});
    if (named.length) {
      const found = named.map(([name, node]) => [name, resolve(node)]);
      return found.map(([name, { summary = name, value }]) => [type, summary, value]);
    }
    const schema = resolve(media.schema);
    if (schema.format === "binary") return [[type, "a file", undefined]];
    return [[type, typeName(media.schema), media.example ?? sample(media.schema)]];
  });
}

function curl(verb, path, body) {
  const method = verb === "get" ? "" : `-X ${verb.toUpperCase()} `;
  const lines = [`curl ${method}${quote(location.origin + path)}`];
  if (spec.components?.securitySchemes) lines.push('-H "Authorization: Bearer $SALVER_API_KEY"');
  if (body) {
    const [type, , value] = body;
    lines.push(`-H ${quote(`Content-Type: ${type}`)}`);
    lines.push(value === undefined ? "--data-binary @FILE"
      : `-d ${quote(typeof value === "string" ? value : JSON.stringify(value))}`);
  }
  return lines.join(" \\\n  ");
}

function block(title, text) {
  const { node, code } = copyable(title);
  code.textContent = text;
  return node;
}

function details(verb, path, operation, shared) {
  const nodes = [];
  const { description, requestBody, responses } = operation;
  if (description) nodes.push(el("p", {}, description));
  const parameters = [...(shared ?? []), ...(operation.parameters ?? [])].map(resolve);
  if (parameters.length) {
    const need = ({ required }) => (required ? "required" : "");
    const row = (p) => [p.name, p.in, typeName(p.schema), need(p), p.description];
    nodes.push(table(["parameter", "in", "type", "", "meaning"], parameters.map(row)));
  }
  const bodies = examples(resolve(requestBody).content);
  nodes.push(block("curl", curl(verb, path, bodies[0])));
  for (const [type, name, value] of bodies) {
    if (value !== undefined) nodes.push(block(`request: ${name} (${type})`, asText(value)));
  }
  const answers = Object.entries(responses ?? {}).map(([status, node]) => [status, resolve(node)]);
  if (answers.length) {
    const types = (node) => Object.values(node.content ?? {}).map((m) => typeName(m.schema));
    const row = ([status, node]) => [status, node.description, types(node).join(", ")];
    nodes.push(table(["answer", "meaning", "type"], answers.map(row)));
  }
  const [good] = answers.filter(([status]) => status.startsWith("2"));
  for (const [type, name, value] of examples(good?.[1].content)) {
    if (value != null) nodes.push(block(`answer: ${name} (${type})`, asText(value)));
  }
  return nodes;
}

function card(verb, path, operation, shared) {
  const head = el("summary", { class: "path" },
    el("span", { class: "verb" }, verb.toUpperCase()), el("code", {}, path),
    el("span", { class: "hint" }, operation.summary ?? ""));
  const node = el("details", { class: "card" }, head);
  node.dataset.text = `${verb} ${path} ${operation.summary ?? ""}`;
  // Filled when opened: a server of many models has a long description.
  node.addEventListener("toggle", () => {
    node.append(el("div", { class: "panel" }, ...details(verb, path, operation, shared)));
  }, { once: true });
  return node;
}

function render() {
  const groups = new Map();
  for (const [path, item] of Object.entries(spec.paths ?? {})) {
    for (const verb of VERBS.filter((name) => item[name])) {
      const tag = item[verb].tags?.[0] ?? "Operations";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(card(verb, path, item[verb], item.parameters));
    }
  }
  const { title = "API docs", version = "", description = "" } = spec.info ?? {};
  find("title").textContent = `${title} ${version}`;
  find("about").textContent = description;
  const about = (tag) => spec.tags?.find(({ name }) => name === tag)?.description ?? "";
  const sections = [...groups].map(([tag, cards]) =>
    el("section", {}, el("h2", {}, tag), el("p", { class: "hint" }, about(tag)),
      el("div", { class: "models" }, ...cards)));
  find("operations").replaceChildren(...sections);
}

async function load() {
  try {
    spec = await getJson("/openapi.json");
    find("key").hidden = find("alert").hidden = true;
    render();
  } catch (error) {
    find("key").hidden = error.status !== 401;
    find("alert").textContent = error.message;
    find("alert").hidden = false;
  }
}

onKey((key) => {
  useKey(key);
  load();
});
onFilter((matches) => {
  for (const node of document.querySelectorAll("details[data-text]")) {
    node.hidden = !matches(node.dataset.text);
  }
});
load();
