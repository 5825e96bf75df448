// A form made from a model's signature, and the same request as a curl command.

import { el, nextId } from "./dom.js";
import { predictPath } from "./api.js";

const isNumeric = (spec) => /^(FP|BF|INT|UINT)/.test(spec.datatype);
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
export const isFile = (spec) => spec.content === "image" || spec.content === "bytes";

function rowShape(spec, method) {
  return method.batching === "rows" ? spec.shape.slice(1) : spec.shape;
}

function zeros(shape, value) {
  if (!shape.length) return value;
  const length = shape[0] < 0 ? 1 : Math.min(shape[0], 4096);
  return Array.from({ length }, () => zeros(shape.slice(1), value));
}

function shapeOf(value) {
  return Array.isArray(value) ? [value.length, ...(value.length ? shapeOf(value[0]) : [])] : [];
}

function pretty(value) {
  if (!Array.isArray(value) || !Array.isArray(value[0])) {
    return JSON.stringify(value, null, isObject(value) ? 2 : 0);
  }
  return `[\n${value.map((row) => ` ${JSON.stringify(row)}`).join(",\n")}\n]`;
}

function labelled(text, control, note = "") {
  control.id = nextId();
  const label = el("label", { for: control.id }, text);
  if (note) label.append(" ", el("small", {}, note));
  return el("div", { class: "field" }, label, control);
}

function scalarField(name, spec, example) {
  const numeric = isNumeric(spec) && typeof example !== "string";
  const step = /INT/.test(spec.datatype) ? 1 : "any";
  let control;
  if (spec.datatype === "BOOL") {
    control = el("input", { type: "checkbox", checked: example === true });
    return { node: labelled(name, control), read: () => control.checked };
  }
  control = numeric ? el("input", { type: "number", step }) : el("input", { type: "text" });
  control.value = example ?? "";
  control.placeholder = "missing";
  const read = () => {
    if (control.validity.badInput) throw new Error(`${name}: not a number`);
    if (control.value === "") return null;
    return numeric ? Number(control.value) : control.value;
  };
  return { node: labelled(name, control), read };
}

function columnsField(spec, example) {
  const at = (name, index) => (Array.isArray(example) ? example[index] : example?.[name]);
  const fields = spec.columns.map((name, index) => scalarField(name, spec, at(name, index)));
  const grid = el("div", { class: "grid" }, ...fields.map((field) => field.node));
  const read = () => Object.fromEntries(fields.map((f, index) => [spec.columns[index], f.read()]));
  return { node: grid, read };
}

function textField(spec, example) {
  const control = el("textarea", { rows: 3 });
  control.value = example ?? "";
  return { node: labelled(spec.name, control, "text"), read: () => control.value };
}

function jsonField(spec, method, example) {
  const shape = rowShape(spec, method);
  const control = el("textarea", { rows: 5, class: "mono", spellcheck: "false" });
  const blank = spec.content === "json" ? {} : zeros(shape, isNumeric(spec) ? 0 : "");
  control.value = spec.optional && example == null ? "" : pretty(example ?? blank);
  const read = () => {
    if (spec.optional && !control.value.trim()) return undefined;
    try {
      return JSON.parse(control.value);
    } catch (error) {
      throw new Error(`${spec.name}: not valid JSON: ${error.message}`);
    }
  };
  const kind = spec.content === "json" ? "JSON" : `${spec.datatype} [${shape.join(", ")}]`;
  return { node: labelled(spec.name, control, kind.replaceAll("-1", "any")), read };
}

function fileField(spec) {
  const control = el("input", { type: "file" });
  if (spec.content === "image") control.accept = "image/*";
  const preview = el("img", { class: "preview", alt: "Preview of the chosen picture", hidden: true });
  control.addEventListener("change", () => {
    URL.revokeObjectURL(preview.src);
    const [file] = control.files;
    preview.hidden = !file?.type.startsWith("image/");
    if (!preview.hidden) preview.src = URL.createObjectURL(file);
  });
  const read = () => {
    const [file] = control.files;
    if (!file && !spec.optional) throw new Error(`${spec.name}: choose a file first`);
    return file;
  };
  const node = el("div", {}, labelled(spec.name, control, spec.content), preview);
  return { node, read };
}

function field(spec, method, example) {
  if (isFile(spec)) return fileField(spec);
  if (spec.content === "text") return textField(spec, example);
  if (spec.content === "json") return jsonField(spec, method, example);
  if (spec.columns?.length) return columnsField(spec, example);
  const size = rowShape(spec, method).reduce((a, b) => a * b, 1);
  const flat = Array.isArray(example) ? example[0] : example;
  return size === 1 ? scalarField(spec.name, spec, flat) : jsonField(spec, method, example);
}

async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let binary = "";
  for (let i = 0; i < bytes.length; i += 32768) {
    binary += String.fromCharCode(...bytes.subarray(i, i + 32768));
  }
  return btoa(binary);
}

// Gives the fields' `node`; `values()`, one per input; and `request()`, what `predict` sends.
export function buildForm(model, method) {
  const { inputs } = method;
  const single = inputs.length === 1;
  const of = (spec) =>
    isObject(model.example) && spec.name in model.example
      ? model.example[spec.name]
      : single ? model.example : undefined;
  const fields = inputs.map((spec) => field(spec, method, of(spec)));
  const values = () => fields.map((item) => item.read());
  async function request() {
    const given = values();
    if (single && isFile(inputs[0])) {
      return { body: given[0], type: given[0].type || "application/octet-stream" };
    }
    const sent = await Promise.all(
      given.map(async (value) => (value instanceof File ? { b64: await base64(value) } : value)),
    );
    return { body: JSON.stringify({ input: oneInput(inputs, sent) }), type: "application/json" };
  }
  return { node: el("div", {}, ...fields.map((item) => item.node)), values, request };
}

function oneInput(inputs, values) {
  if (inputs.length === 1) return values[0];
  return Object.fromEntries(inputs.map((spec, index) => [spec.name, values[index]]));
}

function v2Tensor(spec, method, value) {
  const { name, datatype, columns } = spec;
  const rows = method.batching === "rows" ? [1] : [];
  let data = value;
  if (columns?.length && isObject(value)) data = columns.map((column) => value[column]);
  if (spec.content === "json") data = JSON.stringify(value);
  const shape = [...rows, ...(Array.isArray(data) ? shapeOf(data) : [])];
  while (shape.length < spec.shape.length) shape.push(1);
  return { name, datatype, shape, data: [data].flat(Infinity) };
}

const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function curl(path, options, keyed) {
  const key = keyed ? ` -H "Authorization: Bearer $SALVER_API_KEY"` : "";
  return `curl ${quote(location.origin + path)}${key} \\\n  ${options}`;
}

// The request on each door: [title, command] pairs. A file is named as the user knows it.
export function curlCommands(model, method, values, keyed) {
  const { inputs } = method;
  const name = encodeURIComponent(model.name);
  const path = predictPath(model, method);
  const verb = method === model.methods[0] ? "predict" : encodeURIComponent(method.name);
  const json = "-H 'Content-Type: application/json' -d ";
  if (inputs.length === 1 && isFile(inputs[0])) {
    const file = quote(values[0]?.name ?? (inputs[0].content === "image" ? "picture.png" : "file"));
    const b64 = `'{"instances": [{"b64": "'"$(base64 < ${file} | tr -d '\\n')"'"}]}'`;
    return [
      ["Raw body", curl(path, `-X POST -T ${file}`, keyed)],
      ["TensorFlow Serving, KServe v1", curl(`/v1/models/${name}:${verb}`, json + b64, keyed)],
      [
        "Open Inference Protocol v2",
        curl(`/v2/models/${name}/infer`,
          `-H 'Inference-Header-Content-Length: 0' --data-binary @${file}`, keyed),
      ],
    ];
  }
  const given = values.map((value) => (value instanceof File ? { b64: "…" } : value));
  const input = oneInput(inputs, given);
  const tensors = inputs
    .map((spec, index) => v2Tensor(spec, method, given[index]))
    .filter((tensor) => tensor.data[0] !== undefined);
  const body = (value) => json + quote(JSON.stringify(value));
  const doors = [
    ["Salver", curl(path, body({ input }), keyed)],
    [
      "TensorFlow Serving, KServe v1",
      curl(`/v1/models/${name}:${verb}`, body({ instances: [input] }), keyed),
    ],
  ];
  if (verb === "predict") {
    doors.push([
      "Open Inference Protocol v2",
      curl(`/v2/models/${name}/infer`, body({ inputs: tensors }), keyed),
    ]);
  }
  return doors;
}
