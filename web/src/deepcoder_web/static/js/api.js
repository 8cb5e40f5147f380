// Everything that leaves the page: authenticated JSON, and the stream that says what has changed.
// The token lives in sessionStorage (this tab alone) and is sent in a header, never in an address.

const TOKEN = "deepcoder-token";
const REQUEST_MS = 30_000;
const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 30_000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (value) => sessionStorage.setItem(TOKEN, value.trim()),
  clear: () => sessionStorage.removeItem(TOKEN),
};

// `kubectl deepcoder dashboard` adds the header on the way, and then there is no token here.
function headers() {
  return token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
}

export function runPath({ namespace, name }) {
  return `runs/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`;
}

export async function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, v]) => v !== undefined && v !== ""));
  const address = `api/v1/${path}${query.size ? `?${query}` : ""}`;
  const deadline = AbortSignal.timeout(REQUEST_MS);
  const response = await fetch(address, {
    headers: headers(),
    signal: signal ? AbortSignal.any([signal, deadline]) : deadline,
  });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

async function refusal(response) {
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error ?? message;
  } catch {
    // No JSON: something between the page and the server has answered.
  }
  return new Refused(response.status, message);
}

// Calls `onChange(topic)` for each change of what `parameters` selects, and `onState` with live, waiting or refused.
// Returns a function that ends it. Broken streams are opened again, later each time, until they are refused.
export function watch(parameters, onChange, onState) {
  const ended = new AbortController();
  follow(parameters, onChange, onState, ended.signal);
  return () => ended.abort();
}

async function follow(parameters, onChange, onState, signal) {
  let pause = FIRST_PAUSE_MS;
  let missed = false;
  while (!signal.aborted) {
    try {
      const response = await fetch(`api/v1/stream?${new URLSearchParams(parameters)}`, { headers: headers(), signal });
      if (!response.ok) throw await refusal(response);
      onState("live");
      if (missed) onChange("all");
      pause = FIRST_PAUSE_MS;
      await readLines(response.body, (topic) => topic && onChange(topic));
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && [401, 403, 404].includes(error.status)) return onState("refused", error);
    }
    missed = true;
    onState("waiting");
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
  }
}

async function readLines(body, onLine) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    lines.forEach((line) => onLine(line.trim()));
  }
}
