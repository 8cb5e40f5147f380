// The stream that says what has changed, opened again whenever it breaks, for as long as the page can be seen.
// A browser has six connections to a server that speaks HTTP/1.1, for all its tabs: one that is hidden gives its own up,
// and takes what it missed as changed when it is shown. Of those that are seen some have streams, and the others look anew
// every few seconds until a seat is free.

import { ask, Refused } from "./api.js";
import { takeSeat } from "./seats.js";

const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 30_000;
// A stream that lived so long was a good one; one that ends at once is not opened again every second.
const GOOD_MS = 10_000;
// The server says something every 15 s: what is silent for longer has broken without a word, as after a sleep.
const SILENCE_MS = 45_000;
// How often a page without a stream looks for a seat, and loads what it shows.
const LOOK_MS = 10_000;

// Calls `onChange(topic)` for each change of what `parameters` selects, topic `all` where some may have been missed, and
// `onState` with live, polled (other pages of this browser have all streams), waiting, full (the server has no place for
// another), gone or refused. Returns what ends it.
export function watch(parameters, onChange, onState) {
  const ended = new AbortController();
  let said = "waiting";
  const say = (state) => state !== said && onState((said = state));
  follow(`stream?${new URLSearchParams(parameters)}`, onChange, say, ended.signal);
  return () => ended.abort();
}

async function follow(path, onChange, say, signal) {
  let pause = FIRST_PAUSE_MS;
  let missed = false;
  while (!signal.aborted) {
    if (document.hidden) {
      say("waiting");
      missed = true;
      await shown(signal);
      continue;
    }
    const giveBack = await takeSeat();
    if (signal.aborted || document.hidden) {
      giveBack?.();
      continue;
    }
    if (!giveBack) {
      say("polled");
      if (missed) onChange("all");
      missed = true;
      await after(LOOK_MS, signal);
      continue;
    }
    const ear = listening(signal);
    const began = Date.now();
    let wait = 0;
    try {
      const { body } = await ask(path, ear.signal);
      say("live");
      if (missed) onChange("all");
      missed = true;
      await readLines(body, (topic) => {
        ear.heard();
        if (topic) onChange(topic);
      });
    } catch (error) {
      if (signal.aborted) return;
      missed = true;
      const state = stateOf(error);
      say(state);
      // Each load tells why by itself, and what may not be seen any more goes.
      if (["refused", "gone"].includes(state)) onChange("all");
      if (state === "refused") return;
      wait = error.retryMs ?? 0;
    } finally {
      ear.close();
      giveBack();
    }
    if (document.hidden) continue;
    if (Date.now() - began > GOOD_MS) pause = FIRST_PAUSE_MS;
    await after(Math.max(wait, pause), signal);
    pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
  }
}

function stateOf(error) {
  if (!(error instanceof Refused)) return "waiting";
  return { 401: "refused", 403: "refused", 404: "gone", 429: "full" }[error.status] ?? "waiting";
}

// Ends with `signal`, when the page is hidden, and when nothing is heard for too long.
function listening(signal) {
  const mine = new AbortController();
  const end = () => mine.abort();
  const hidden = () => document.hidden && end();
  let silence = setTimeout(end, SILENCE_MS);
  signal.addEventListener("abort", end);
  document.addEventListener("visibilitychange", hidden);
  return {
    signal: mine.signal,
    heard() {
      clearTimeout(silence);
      silence = setTimeout(end, SILENCE_MS);
    },
    close() {
      clearTimeout(silence);
      signal.removeEventListener("abort", end);
      document.removeEventListener("visibilitychange", hidden);
      end();
    },
  };
}

// Until the page is seen, or nobody waits any more.
function shown(signal) {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      signal.removeEventListener("abort", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look);
    look();
  });
}

function after(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => resolve(clearTimeout(timer)), { once: true });
  });
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
