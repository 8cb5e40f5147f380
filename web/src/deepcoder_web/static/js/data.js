// What components need of the server: loaded once, again when the stream says so, with what was there kept meanwhile.

import { get, Refused, watch } from "./api.js";
import { useCallback, useEffect, useRef, useState } from "./ui.js";

// {data, error, reload}. A failed reload keeps the data and tells the error beside it.
export function useData(path, parameters = {}) {
  const [state, setState] = useState({ data: null, error: null });
  const key = path && `${path}?${new URLSearchParams(parameters)}`;
  const current = useRef(null);
  const load = useCallback(() => {
    if (!key) return;
    current.current?.abort();
    const mine = (current.current = new AbortController());
    get(path, parameters, mine.signal).then(
      (data) => !mine.signal.aborted && setState({ data, error: null }),
      (error) => {
        if (mine.signal.aborted) return;
        if (error instanceof Refused && error.status === 401) dispatchEvent(new Event("deepcoder-signed-out"));
        setState((before) => ({ ...before, error }));
      },
    );
  }, [key]);
  useEffect(() => {
    setState({ data: null, error: null });
    load();
    return () => current.current?.abort();
  }, [load]);
  return { ...state, reload: load };
}

// The state of the stream: waiting, live or refused. `onChange(topic)` may change between renders.
export function useWatch(parameters, onChange) {
  const [state, setState] = useState("waiting");
  const latest = useRef(onChange);
  latest.current = onChange;
  const key = String(new URLSearchParams(parameters));
  useEffect(() => watch(parameters, (topic) => latest.current(topic), setState), [key]);
  return state;
}

// Columns by step of a run, grown by what is new: ten thousand steps are not sent again for each one more.
export function useSteps(path) {
  const [state, setState] = useState({ steps: null, error: null });
  const held = useRef(null);
  const busy = useRef(false);
  const load = useCallback(async () => {
    if (busy.current) return;
    busy.current = true;
    try {
      const more = await get(`${path}/steps`, held.current ? { after: held.current.cursor } : {});
      held.current = more.reset || !held.current ? more : grown(held.current, more);
      setState({ steps: held.current, error: null });
    } catch (error) {
      setState((before) => ({ ...before, error }));
    } finally {
      busy.current = false;
    }
  }, [path]);
  useEffect(() => {
    held.current = null;
    setState({ steps: null, error: null });
    load();
  }, [load]);
  return { ...state, reload: load };
}

function grown(before, more) {
  if (more.step.length === 0) return before.cursor === more.cursor ? before : { ...before, cursor: more.cursor };
  const length = before.step.length;
  const columns = (a, b) => {
    const names = new Set([...Object.keys(a), ...Object.keys(b)]);
    const empty = (n) => new Array(n).fill(null);
    return Object.fromEntries(
      [...names].map((n) => [n, (a[n] ?? empty(length)).concat(b[n] ?? empty(more.step.length))]),
    );
  };
  return {
    cursor: more.cursor,
    stage: before.stage.concat(more.stage),
    step: before.step.concat(more.step),
    ordinal: before.ordinal.concat(more.ordinal),
    time: before.time.concat(more.time),
    metrics: columns(before.metrics, more.metrics),
    phaseSeconds: columns(before.phaseSeconds, more.phaseSeconds),
  };
}
