// One load at a time. Who asks while one is under way gets another after it, and only one: a load is never given up for
// a newer one, else a page whose run changes faster than its bucket answers would show nothing. Pure, and never fails: what
// the load throws goes to `failed`.

// `load(signal)` gives a promise. Once ended, a flight tells nobody anything: what comes late belongs to another page.
export function singleFlight(load, done, failed) {
  const ended = new AbortController();
  let [busy, due] = [false, false];
  async function ask() {
    due = true;
    if (busy) return;
    busy = true;
    while (due && !ended.signal.aborted) {
      due = false;
      try {
        const value = await load(ended.signal);
        if (!ended.signal.aborted) done(value);
      } catch (error) {
        if (!ended.signal.aborted) failed(error);
      }
    }
    busy = false;
  }
  return { ask, end: () => ended.abort() };
}
