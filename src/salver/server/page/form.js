// A form made from a model's signature, and the same request as curl commands.

import { el, nextId, quote } from "./dom.js";
import { predictPath } from "./api.js";

const isNumeric = (spec) => /^(FP|BF|INT|UINT)/.test(spec.datatype);
const isFile = (spec) => spec?.content === "image" || spec?.content === "bytes";
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const rowShape = (spec, method) => (method.batching === "rows" ? spec.shape.slice(1) : spec.shape);

function filled(shape, value) {
  if (!shape.length) return value;
  const length = Math.min(Math.abs(shape[0]), 4096);
  return Array.from({ length }, () => filled(shape.slice(1), value));
}

const shapeOf = (value) => (Array.isArray(value) ? [value.length, ...shapeOf(value[0])] : []);

function pretty(value) {
  const isMatrix = Array.isArray(value) && Array.isArray(value[0]);
  if (!isMatrix) return JSON.stringify(value, null, isObject(value) ? 2 : 0);
  return `[\n${value.map((row) => ` ${JSON.stringify(row)}`).join(",\n")}\n]`;
}

function labelled(name, control, read, note = "", ...more) {
  control.id = nextId();
  const label = el("label", { for: control.id }, name, " ", el("small", {}, note));
  return { node: el("div", { class: "field" }, label, control, ...more), read };
}

function scalarField(name, spec, example, blank) {
  if (spec.datatype === "BOOL") {
    const box = el("input", { type: "checkbox", checked: example === true });
    box.indeterminate = spec.optional && example == null;
    return labelled(name, box, () => (box.indeterminate ? undefined : box.checked));
  }
  const numeric = isNumeric(spec) && typeof example !== "string";
  const step = spec.datatype.includes("INT") ? 1 : "any";
  const control = el("input", numeric ? { type: "number", step } : { type: "text" });
  const zero = numeric && !spec.optional && example === undefined;
  control.value = zero ? 0 : (example ?? "");
  if (blank === null) control.placeholder = "missing";
  else control.required = numeric && !spec.optional;
  const read = () => (control.value === "" ? blank : numeric ? +control.value : control.value);
  return labelled(name, control, read);
}

function columnsField(spec, example) {
  const at = (name, index) => (Array.isArray(example) ? example[index] : example[name]) ?? null;
  const field = (name, index) => scalarField(name, spec, example && at(name, index), null);
  const fields = spec.columns.map(field);
  const read = () => Object.fromEntries(fields.map((f, index) => [spec.columns[index], f.read()]));
  return { node: el("div", { class: "grid" }, ...fields.map((f) => f.node)), read };
}

function jsonField(spec, shape, example) {
  const control = el("textarea", { rows: 5, class: "mono", spellcheck: "false" });
  const blank = spec.content === "json" ? {} : filled(shape, isNumeric(spec) ? 0 : "");
  const shown = example ?? spec.example ?? blank;
  control.value = spec.optional && example == null ? "" : pretty(shown);
  const read = () => {
    control.setCustomValidity("");
    if (spec.optional && !control.value.trim()) return undefined;
    try {
      return JSON.parse(control.value);
    } catch (error) {
      control.setCustomValidity(error.message);
    }
  };
  const kind = spec.content === "json" ? "JSON" : `${spec.datatype} [${shape.join(", ")}]`;
  return labelled(spec.name, control, read, kind.replaceAll("-1", "any"));
}

function fileField(spec) {
  const control = el("input", { type: "file", required: !spec.optional });
  if (spec.content === "image") control.accept = "image/*";
  const preview = el("img", { class: "preview", alt: "The chosen picture", hidden: true });
  control.addEventListener("change", () => {
    URL.revokeObjectURL(preview.src);
    const [file] = control.files;
    preview.hidden = !file?.type.startsWith("image/");
    if (!preview.hidden) preview.src = URL.createObjectURL(file);
  });
  return labelled(spec.name, control, () => control.files[0], spec.content, preview);
}

function fieldOf(spec, method, example) {
  const shape = rowShape(spec, method);
  const isCell = method.inputs.length > 1 && method.batching === "rows";
  if (isFile(spec)) return fileField(spec);
  if (spec.content === "text" && !isCell) {
    const control = el("textarea", { rows: 3 }, String(example ?? ""));
    const read = () => control.value || (spec.optional ? undefined : "");
    return labelled(spec.name, control, read, "text");
  }
  if (spec.content === "json") return jsonField(spec, shape, example);
  const isTable = spec.columns?.length;
  if (isTable && method.inputs.length === 1) return columnsField(spec, example);
  if (shape.some((length) => length !== 1)) return jsonField(spec, shape, example);
  const blank = isTable ? null : spec.optional ? undefined : "";
  return scalarField(spec.name, spec, [example].flat()[0], blank);
}

function asBase64(file) {
  return new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done({ b64: reader.result.split(",")[1] });
    reader.readAsDataURL(file);
  });
}

const oneInput = ({ inputs }, values) =>
  inputs.length === 1 ? values[0] : Object.fromEntries(inputs.map((s, i) => [s.name, values[i]]));

// Gives the fields' `node`; `values()`, one per input; and `request()`, what `predict` sends.
export function buildForm({ example }, method) {
  const { inputs } = method;
  // What an example leaves out is missing.
  const given = ({ name }) =>
    isObject(example) && (name in example || inputs.length > 1)
      ? (example[name] ?? null) : (example ?? undefined);
  const fields = inputs.map((spec) => fieldOf(spec, method, given(spec)));
  const values = () => fields.map((field) => field.read());
  async function request() {
    const found = values();
    if (inputs.length === 1 && found[0] instanceof File) {
      return { body: found[0], type: found[0].type || "application/octet-stream" };
    }
    const sent = await Promise.all(found.map((v) => (v instanceof File ? asBase64(v) : v)));
    return { body: JSON.stringify({ input: oneInput(method, sent) }), type: "application/json" };
  }
  const node = el("div", { class: "inputs" }, ...fields.map((field) => field.node));
  return { node, values, request };
}

function v2Tensor(spec, method, value) {
  let data = spec.content === "json" ? JSON.stringify(value) : value;
  if (isObject(data)) data = spec.columns?.map((column) => value[column]);
  const shape = [...(method.batching === "rows" ? [1] : []), ...shapeOf(data)];
  while (shape.length < spec.shape.length) shape.push(1);
  const flat = [data].flat(Infinity).map((item) => item ?? "NaN");
  return { name: spec.name, datatype: spec.datatype, shape, data: flat };
}

// The binary form of the protocol: JSON, then the file behind its length in four bytes.
function binaryRequest(spec, file) {
  if (!file) return ["# choose a file first"];
  const parameters = { binary_data_size: file.size + 4 };
  const shape = spec.shape.map(() => 1);
  const input = { name: spec.name, datatype: "BYTES", shape, parameters };
  const head = JSON.stringify({ inputs: [input] });
  const length = [0, 8, 16, 24].map((bits) => `\\0${((file.size >>> bits) & 255).toString(8)}`);
  const parts = `printf %s ${quote(head)}; printf %b '${length.join("")}'; cat ${quote(file.name)}`;
  const size = new TextEncoder().encode(head).length;
  return [`-H 'Inference-Header-Content-Length: ${size}'`, `--data-binary @- < <(${parts})`];
}

// The request on each door as [title, command]. V2 reaches the first method only, and streams
// come from our own door alone.
export function curlCommands(model, method, values, keyed) {
  const { inputs } = method;
  const file = isFile(inputs[0]) && inputs.length === 1 && quote(values[0]?.name ?? "FILE");
  const input = oneInput(method, values.map((v) => (v instanceof File ? { b64: "…" } : v)));
  const present = inputs.map((spec, i) => [spec, values[i]]).filter(([, v]) => v !== undefined);
  const tensors = present.map(([spec, value]) => v2Tensor(spec, method, value));
  const isFirst = method === model.methods[0];
  const signature = isFirst ? {} : { signature_name: method.name };
  const json = "-H 'Content-Type: application/json'";
  const bodies = file
    ? [
        [`-T ${file}`],
        [json, `-d '{"instances": [{"b64": "'$(base64 < ${file} | tr -d '\\n')'"}]}'`],
        binaryRequest(inputs[0], values[0]),
      ]
    : [{ input }, { ...signature, instances: [input] }, { inputs: tensors }]
        .map((body) => [json, `-d ${quote(JSON.stringify(body))}`]);
  const name = encodeURIComponent(model.name);
  const doors = {
    Salver: predictPath(model, method),
    ...(!method.streams && { "TensorFlow Serving, KServe v1": `/v1/models/${name}:predict` }),
    ...(isFirst && !method.streams && { "Open Inference Protocol v2": `/v2/models/${name}/infer` }),
  };
  const key = keyed ? ['-H "Authorization: Bearer $SALVER_API_KEY"'] : [];
  return Object.entries(doors).map(([title, path], i) => [
    title,
    [`curl ${quote(location.origin + path)}`, ...key, ...bodies[i]].join(" \\\n  "),
  ]);
}
