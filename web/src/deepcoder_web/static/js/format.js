// Numbers, times and digests as people read them. Pure; an absent value is an en dash.

const NONE = "–";

export function number(value, digits = 3) {
  if (value === null || value === undefined || value === "" || Number.isNaN(Number(value))) return NONE;
  const n = Number(value);
  if (Number.isInteger(n)) return n.toLocaleString("en");
  return Math.abs(n) >= 1000 ? Math.round(n).toLocaleString("en") : String(Number(n.toPrecision(digits)));
}

export function percent(value) {
  return value === null || value === undefined ? NONE : `${(100 * Number(value)).toFixed(1)}\u00a0%`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return NONE;
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function age(time, now = Date.now()) {
  return time ? duration((now - Date.parse(time)) / 1000) : NONE;
}

// In the reader's zone, which it names: logs and exports have another.
export function moment(time) {
  return time ? new Date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "long" }) : NONE;
}

export function short(digest) {
  return digest ? digest.replace(/^sha256:/, "").slice(0, 12) : NONE;
}

export function gpuHours(seconds) {
  return seconds === null || seconds === undefined ? NONE : `${number(Number(seconds) / 3600)} GPU-h`;
}

export function interval(estimate) {
  if (!estimate) return NONE;
  return `${percent(estimate.mean)} (${percent(estimate.low)} to ${percent(estimate.high)})`;
}
