// What components need of the server: loaded once, again when the stream says so, with what was there kept meanwhile.

import { get } from "./api.js";
import { singleFlight } from "./flight.js";
import { grown } from "./series.js";
import { watch } from "./stream.js";
import { useCallback, useEffect, useRef, useState } from "./ui.js";

const NOTHING = { data: null, error: null };
// How soon a failed load is repeated if the server names no time.
const AGAIN_MS = 30_000;

// A failed reload keeps the data and tells the error beside it; what may not be seen any more goes.
export function failed(before, error) {
  return { data: [401, 403].includes(error.status) ? null : before.data, error };
}

// What is under a run changes with these alone; its progress, reported every few seconds, changes none of it.
export function settled(run) {
  return JSON.stringify([run.uid, run.phase, run.stage, run.attempt, run.latestCheckpoint?.digest]);
}

// {data, error, reload}. `make` gives the load of what `key` names, none without a key. It is loaded again as soon as
// `version` is another; after a failure also when `changes` is, and after a pause: a run that changes no more wakes nobody.
function useLoaded(key, make, { version, changes } = {}) {
  const [state, setState] = useState(NOTHING);
  const flight = useRef(null);
  const loaded = useRef(undefined);
  useEffect(() => {
    setState(NOTHING);
    if (!key) return undefined;
    const mine = singleFlight(
      make(),
      (data) => setState((before) => (before.data === data && !before.error ? before : { data, error: null })),
      (error) => setState((before) => failed(before, error)),
    );
    flight.current = mine;
    loaded.current = version;
    mine.ask();
    return () => {
      mine.end();
      flight.current = null;
    };
  }, [key]);
  const reload = useCallback(() => flight.current?.ask(), []);
  const broken = Boolean(state.error);
  useEffect(() => {
    const before = loaded.current;
    loaded.current = version ?? before;
    // What was not known when it was loaded is no change of it.
    if (broken || (before ?? version) !== loaded.current) reload();
  }, [version, changes]);
  useEvery(broken ? state.error.retryMs || AGAIN_MS : 0, reload);
  return { ...state, reload };
}

export function useData(path, parameters = {}, since = {}) {
  const key = path && `${path}?${new URLSearchParams(parameters)}`;
  return useLoaded(key, () => (signal) => get(path, parameters, signal), since);
}

// Columns by step of a run, grown by what is new: ten thousand steps are not sent again for each one more.
export function useSteps(path, since = {}) {
  const make = () => {
    let held = null;
    return async (signal) => (held = grown(held, await get(`${path}/steps`, held ? { after: held.cursor } : {}, signal)));
  };
  const { data, error, reload } = useLoaded(path, make, since);
  return { steps: data, error, reload };
}

// Calls `action` again and again while the page can be seen; never if `ms` is 0.
export function useEvery(ms, action) {
  const latest = useRef(action);
  latest.current = action;
  useEffect(() => {
    if (!ms) return undefined;
    const timer = setInterval(() => document.hidden || latest.current(), ms);
    return () => clearInterval(timer);
  }, [ms]);
}

// The state of the stream, as stream.js names it. `onChange(topic)` may change between renders.
export function useWatch(parameters, onChange) {
  const [state, setState] = useState("waiting");
  const latest = useRef(onChange);
  latest.current = onChange;
  const key = String(new URLSearchParams(parameters));
  useEffect(() => watch(parameters, (topic) => latest.current(topic), setState), [key]);
  return state;
}
