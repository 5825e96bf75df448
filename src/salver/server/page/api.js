// Requests to the server. The API key lives in this module and nowhere else.

let key = "";

export function useKey(value) {
  key = value;
}

async function send(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" }).catch(() => {
    throw new Error("The server does not answer.");
  });
  if (response.ok) return response;
  const text = await response.text();
  const error = new Error(text.slice(0, 500) || `HTTP ${response.status}`);
  try {
    error.message = JSON.parse(text).error;
  } catch {
    // Not ours: something between here and the server answered, and its text is all there is.
  }
  throw Object.assign(error, { status: response.status });
}

export const getJson = async (path) => (await send(path)).json();

// Sends a body built by `form.js`; `onText` gets what a stream has brought so far.
export async function predict(path, { body, type }, onText) {
  const start = performance.now();
  const headers = { "Content-Type": type };
  const response = await send(path, { method: "POST", body, headers });
  let answer;
  if (response.headers.get("Content-Type")?.startsWith("application/json")) {
    answer = await response.json();
  } else {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    answer = { prediction: "" };
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      onText?.((answer.prediction += part.value));
    }
  }
  return { answer, ms: performance.now() - start };
}

export function predictPath({ name, methods }, method) {
  const path = `/predict/${encodeURIComponent(name)}`;
  return method === methods[0] ? path : `${path}/${encodeURIComponent(method.name)}`;
}
