import { along, charts, grown, smooth } from "../../src/deepcoder_web/static/js/series.js";
import { deepEqual, equal, test } from "./check.js";

const columns = (stage, step, reward, more = {}) => ({
  cursor: `${step.length}-x`,
  reset: false,
  stage,
  step,
  ordinal: step.map(() => 1),
  time: step.map((s) => s * 10),
  metrics: { reward_mean: reward },
  phaseSeconds: { train: step.map(() => 2) },
  ...more,
});

test("a trailing mean is over the values that are there", () => {
  deepEqual(smooth([1, null, 3, 5], 2), [1, null, 2, 4]);
  deepEqual(smooth([2, 4, 6], 25), [2, 3, 4]);
});

test("without smoothing the values are those that came", () => {
  const values = [1, null, 3];
  equal(smooth(values, 1), values);
});

test("stages follow each other on one axis, and each beginning is marked", () => {
  const { x, marks } = along(columns(["short", "short", "long"], [1, 2, 1], [0, 0, 0]));
  deepEqual(x, [1, 2, 3]);
  deepEqual(marks, [{ at: 1, name: "short" }, { at: 3, name: "long" }]);
});

test("a chart has the lines that the run has, and one without any is left out", () => {
  const drawn = charts(columns(["a"], [1], [0.5]), "None");
  deepEqual(drawn.map((c) => [c.title, c.lines.map((l) => l.name)]), [
    ["Reward", ["mean reward"]],
    ["Seconds by phase", ["train"]],
  ]);
});

test("every line of a chart is smoothed as it was asked for", () => {
  const steps = columns(["a", "a"], [1, 2], [0, 1], { phaseSeconds: { train: [2, 4] } });
  deepEqual(charts(steps, "Mean of 5").map((c) => c.lines[0].values), [[0, 0.5], [2, 3]]);
});

test("what came since is put after what is held", () => {
  const held = columns(["a", "a"], [1, 2], [0.1, 0.2]);
  const all = grown(held, { ...columns(["b"], [1], [0.3]), cursor: "3-y" });
  deepEqual([all.step, all.stage, all.metrics.reward_mean, all.cursor], [[1, 2, 1], ["a", "a", "b"], [0.1, 0.2, 0.3], "3-y"]);
  deepEqual(held.step, [1, 2], "what is drawn already is not changed under the charts");
});

test("a figure that begins or ends in the middle has no values elsewhere", () => {
  const held = columns(["a"], [1], [0.1], { metrics: { old: [1] } });
  const all = grown(held, columns(["a"], [2], [0.2], { metrics: { young: [2] } }));
  deepEqual(all.metrics, { old: [1, null], young: [null, 2] });
});

test("nothing new is nothing to draw again", () => {
  const held = columns(["a"], [1], [0.1]);
  equal(grown(held, columns([], [], [])), held);
});

test("steps that were trained again take the place of all that is held", () => {
  const again = columns(["a"], [1], [0.9], { reset: true });
  equal(grown(columns(["a", "a"], [1, 2], [0.1, 0.2]), again), again);
  equal(grown(null, again), again);
});
