// Everything that leaves the page: authenticated requests, whose refusals are told in one way.
// The token lives in sessionStorage (this tab alone) and is sent in a header, never in an address.

const TOKEN = "deepcoder-token";
export const SIGNED_OUT = "deepcoder-signed-out";
// Longer than the server takes to give up on a bucket, so that its words are shown: 20 s for the viewer's rights, 15 s for
// a free thread, 60 s for the bucket.
const REQUEST_MS = 100_000;

export class Refused extends Error {
  constructor(status, message, retryMs) {
    super(message);
    this.status = status;
    this.retryMs = retryMs;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (value) => sessionStorage.setItem(TOKEN, value.trim()),
  clear: () => sessionStorage.removeItem(TOKEN),
};

// `kubectl deepcoder dashboard` adds the header on the way, and then there is no token here.
// Throws Refused for every answer that is none; what ends the session is told to the shell at once, whoever asked.
export async function ask(path, signal) {
  const headers = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  const response = await fetch(`api/v1/${path}`, { headers, signal });
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error ?? message;
  } catch {
    // No JSON: something between the page and the server has answered.
  }
  if (response.status === 401) dispatchEvent(new CustomEvent(SIGNED_OUT, { detail: message }));
  throw new Refused(response.status, message, 1000 * Number(response.headers.get("Retry-After") ?? 0) || 0);
}

export function runPath({ namespace, name }) {
  return `runs/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`;
}

export async function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, v]) => v !== undefined && v !== ""));
  const deadline = AbortSignal.timeout(REQUEST_MS);
  try {
    const response = await ask(query.size ? `${path}?${query}` : path, signal ? AbortSignal.any([signal, deadline]) : deadline);
    return await response.json();
  } catch (error) {
    throw explained(error);
  }
}

// A browser says only "Failed to fetch" or "signal timed out".
function explained(error) {
  if (error.name === "TimeoutError") return new Error(`The dashboard has not answered in ${REQUEST_MS / 1000} s.`);
  if (error instanceof TypeError) return new Error(`The dashboard cannot be reached: is kubectl still forwarding to it? (${error.message})`);
  return error;
}
