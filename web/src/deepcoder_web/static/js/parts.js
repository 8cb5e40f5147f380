// Small things that several pages show: a run's phase, a problem, the state of the stream, tabs.

import { html, useRef } from "./ui.js";

const TONES = {
  Running: "good",
  Complete: "good",
  Failed: "bad",
  Backoff: "warn",
  Held: "warn",
  Suspended: "quiet",
  Pending: "quiet",
  Queued: "quiet",
  Unknown: "quiet",
};

export function Phase({ value }) {
  return html`<span class=${`phase ${TONES[value] ?? "busy"}`}>${value}</span>`;
}

export function Problem({ error }) {
  return error && html`<p class="problem" role="alert">${error.message}</p>`;
}

// What stands where something is yet to come, or why it does not.
export function Loading({ error }) {
  return error ? html`<${Problem} error=${error} />` : html`<p class="empty loading">Loading…</p>`;
}

const STREAM = {
  live: "live",
  old: "not live",
  polled: "looked at every 10 s",
  waiting: "connecting…",
  full: "not live: too many open pages, close some",
  gone: "it is gone",
  refused: "not allowed",
};

// Seen always; spoken only when what was live is not live any more.
export function Live({ state, problem }) {
  const shown = problem && state === "live" ? "old" : state;
  const was = useRef(false);
  was.current ||= shown === "live";
  return html`<span class=${`stream ${shown}`}>${STREAM[shown]}</span>
    <span class="unseen" role="status">${was.current && shown !== "live" ? `No longer live: ${STREAM[shown]}` : ""}</span>`;
}

// Why the page's own server may not know the newest.
export function Old({ problem }) {
  return problem && html`<p class="problem" role="alert">What is shown may be old: ${problem}</p>`;
}

export function Facts({ of }) {
  const rows = of.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return html`<dl class="facts">${rows.map(([term, value]) => html`<div><dt>${term}</dt><dd>${value}</dd></div>`)}</dl>`;
}

// The pattern of WAI-ARIA: arrows move between tabs, Tab goes into what they show.
export function Tabs({ tabs, current, href, label }) {
  const list = useRef(null);
  const move = (event) => {
    const at = tabs.findIndex(([id]) => id === current);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const [id] = tabs[(to + tabs.length) % tabs.length];
    location.hash = href(id);
    list.current.querySelector(`[data-tab="${id}"]`).focus();
  };
  return html`<div class="tabs" role="tablist" aria-label=${label} ref=${list} onKeyDown=${move}>
    ${tabs.map(
      ([id, title]) => html`<a role="tab" id=${`tab-${id}`} data-tab=${id} href=${href(id)} aria-controls="panel"
        aria-selected=${String(id === current)} tabindex=${id === current ? 0 : -1}>${title}</a>`,
    )}
  </div>`;
}
