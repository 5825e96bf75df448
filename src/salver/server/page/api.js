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

// A stream has one answer in each line; texts are joined.
async function readLines(response, onAnswer) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const found = [];
  let answer = {};
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const { error, prediction, ...others } = JSON.parse(line);
      if (error) throw new Error(error);
      found.push(prediction);
      const isText = found.every((item) => typeof item === "string");
      answer = { prediction: isText ? found.join("") : found, ...others };
    }
    onAnswer(answer);
  }
  return answer;
}

// Sends a body built by `form.js`; `onAnswer` gets what a stream has brought so far.
export async function predict(path, { body, type }, onAnswer) {
  const start = performance.now();
  const headers = { "Content-Type": type };
  const response = await send(path, { method: "POST", body, headers });
  const isStream = response.headers.get("Content-Type").includes("ndjson");
  const answer = await (isStream ? readLines(response, onAnswer) : response.json());
  return { answer, ms: performance.now() - start };
}

export function predictPath({ name, methods }, method) {
  const path = `/predict/${encodeURIComponent(name)}`;
  return method === methods[0] ? path : `${path}/${encodeURIComponent(method.name)}`;
}
