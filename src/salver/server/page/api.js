// Requests to the server. The API key lives in this module and nowhere else.

let key = "";

export function useKey(value) {
  key = value;
}

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function send(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch {
    throw new Refused("The server does not answer.", 0);
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = text.slice(0, 500) || `HTTP ${response.status}`;
  try {
    const { error } = JSON.parse(text);
    message = error?.message ?? error ?? message;
  } catch {
    // Not JSON: something between here and the server answered, and its text is all there is.
  }
  throw new Refused(String(message), response.status);
}

export async function getJson(path) {
  return (await send(path)).json();
}

// Sends a body built by `form.js`; `onText` gets what a stream has brought so far.
export async function predict(path, { body, type }, onText = () => {}) {
  const start = performance.now();
  const headers = type ? { "Content-Type": type } : {};
  const response = await send(path, { method: "POST", body, headers });
  if (/\bjson$/.test((response.headers.get("Content-Type") ?? "").split(";")[0])) {
    const answer = await response.json();
    return { answer, ms: performance.now() - start };
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    onText((text += part.value));
  }
  return { answer: { prediction: text }, ms: performance.now() - start };
}

export function predictPath(model, method) {
  const path = `/predict/${encodeURIComponent(model.name)}`;
  return method && method !== model.methods[0] ? `${path}/${encodeURIComponent(method.name)}` : path;
}
