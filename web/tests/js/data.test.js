import { failed, settled } from "../../src/deepcoder_web/static/js/data.js";
import { singleFlight } from "../../src/deepcoder_web/static/js/flight.js";
import { deepEqual, equal, notEqual, test, turn } from "./check.js";

// A flight whose loads end when the test says so.
function flown() {
  const [loads, done, errors] = [[], [], []];
  const load = (signal) => new Promise((land, crash) => loads.push({ land, crash, signal }));
  const flight = singleFlight(load, (value) => done.push(value), (error) => errors.push(error.message));
  return { flight, loads, done, errors };
}

test("a load is not given up for those who ask meanwhile: they get one more after it", async () => {
  const { flight, loads, done } = flown();
  flight.ask();
  flight.ask();
  flight.ask();
  deepEqual([loads.length, loads[0].signal.aborted], [1, false]);
  loads[0].land("first");
  await turn();
  deepEqual([done, loads.length], [["first"], 2]);
  loads[1].land("second");
  await turn();
  deepEqual([done, loads.length], [["first", "second"], 2]);
});

test("a failure is told, and what was due is loaded all the same", async () => {
  const { flight, loads, done, errors } = flown();
  flight.ask();
  flight.ask();
  loads[0].crash(new Error("no bucket"));
  await turn();
  loads[1].land("there");
  await turn();
  deepEqual([errors, done], [["no bucket"], ["there"]]);
});

test("an ended flight tells nobody what comes late, and takes off no more", async () => {
  const { flight, loads, done, errors } = flown();
  flight.ask();
  flight.ask();
  flight.end();
  equal(loads[0].signal.aborted, true);
  loads[0].land("of another page");
  await turn();
  deepEqual([loads.length, done, errors], [1, [], []]);
});

test("a failed reload keeps the data, unless they may not be seen any more", () => {
  for (const [status, kept] of [[502, "old"], [404, "old"], [429, "old"], [undefined, "old"], [401, null], [403, null]]) {
    equal(failed({ data: "old", error: null }, { status }).data, kept, String(status));
  }
});

test("progress changes nothing under a run; a checkpoint, an attempt, a stage, a phase and another run of that name do", () => {
  const run = { uid: "u-1", phase: "Running", stage: "short", attempt: 2, latestCheckpoint: { digest: "sha256:a" }, step: 7, display: "7/9" };
  equal(settled({ ...run, step: 8, display: "8/9" }), settled(run));
  for (const change of [{ phase: "Complete" }, { stage: "long" }, { attempt: 3 }, { latestCheckpoint: { digest: "sha256:b" } }, { latestCheckpoint: null }, { uid: "u-2" }]) {
    notEqual(settled({ ...run, ...change }), settled(run));
  }
});
