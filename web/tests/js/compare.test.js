import { differences } from "../../src/deepcoder_web/static/js/compare.js";
import { isOpen, nearest } from "../../src/deepcoder_web/static/js/samples.js";
import { deepEqual, equal, test } from "./check.js";

test("settings are compared leaf by leaf, in the order of their names", () => {
  const a = { recipe: { learningRate: 1e-6, clipHigh: 0.28 }, stages: { short: { maxSteps: 10 } } };
  const b = { recipe: { learningRate: 2e-6, clipHigh: 0.28 }, stages: { short: { maxSteps: 20 } } };
  deepEqual(differences(a, b), [
    ["recipe.learningRate", "0.000001", "0.000002"],
    ["stages.short.maxSteps", "10", "20"],
  ]);
});

test("what one run alone has is a difference, and equal runs have none", () => {
  deepEqual(differences({ kl: null, list: [1, 2] }, { list: [1, 3] }), [["kl", "null", "–"], ["list.1", "2", "3"]]);
  deepEqual(differences({}, { a: 1 }), [["a", "–", "1"]]);
  deepEqual(differences({ a: { b: [1] } }, { a: { b: [1] } }), []);
});

test("a step without rollouts leads to the nearest that has some, of the same stage", () => {
  const steps = [["short", 1], ["short", 40], ["long", 5]].map(([stage, step]) => ({ stage, step }));
  deepEqual(nearest(steps, "short", 30), steps[1]);
  deepEqual(nearest(steps, "long", 1), steps[2]);
  deepEqual(nearest(steps, "short", Number.MAX_SAFE_INTEGER), steps[1]);
  deepEqual(nearest(steps, "gone", 5), steps[2]);
});

test("of several draws the address opens the one it names, else the one that was trained on", () => {
  const rows = [{ group: 3, index: 1, draw: 0, dropped: true }, { group: 3, index: 1, draw: 1, dropped: false }];
  const open = (draw) => rows.filter((r) => isOpen(r, { group: "3", index: "1", draw }));
  deepEqual([open("0"), open("1"), open(undefined)], [[rows[0]], [rows[1]], [rows[1]]]);
  equal(isOpen(rows[0], { group: "3", index: "2", draw: "0" }), false);
});
