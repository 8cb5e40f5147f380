// From columns by step to the lines of charts. Pure: no element, no request.

const NOISE = { None: 1, "Mean of 5": 5, "Mean of 25": 25 };
export const SMOOTHINGS = Object.keys(NOISE);

// What people look at first comes first; a chart without values is left out.
export const CHARTS = [
  ["Reward", [["reward_mean", "mean reward"], ["solved_all_ratio", "all solved"], ["solved_none_ratio", "none solved"]]],
  ["Truncated share", [["truncated_ratio", "truncated"], ["no_code_ratio", "no code"], ["quarantined_ratio", "quarantined"]]],
  ["Response length (tokens)", [["response_tokens_mean", "mean"], ["response_tokens_p95", "p95"], ["response_tokens_max", "max"]]],
  ["Entropy (nats)", [["entropy", "entropy"]]],
  ["Clipped share", [["clipped_low_ratio", "low"], ["clipped_high_ratio", "high"]]],
  ["Staleness (versions)", [["staleness_mean", "mean"], ["staleness_max", "max"]]],
  ["Judging (seconds)", [["judge_seconds_mean", "mean"]]],
  ["Gradient norm", [["grad_norm", "mean"], ["grad_norm_max", "max"]]],
  ["Loss", [["loss", "loss"]]],
  ["KL, sampler against learner", [["mismatch_kl", "KL"]]],
];

export function charts(steps, smoothing) {
  const column = (name) => steps.metrics[name];
  const known = CHARTS.map(([title, of]) => ({ title, lines: of.filter(([n]) => column(n)).map(([n, name]) => line(name, column(n), smoothing)) }));
  const seconds = Object.entries(steps.phaseSeconds).map(([name, values]) => line(name, values, smoothing));
  return [...known, { title: "Seconds by phase", lines: seconds }].filter((c) => c.lines.length);
}

function line(name, values, smoothing) {
  return { name, values: smooth(values, NOISE[smoothing] ?? 1) };
}

// Trailing mean over the values that are there.
export function smooth(values, width) {
  if (width <= 1) return values;
  const means = new Array(values.length);
  const held = [];
  let sum = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (value === null || value === undefined) {
      means[i] = null;
      continue;
    }
    held.push(value);
    sum += value;
    if (held.length > width) sum -= held.shift();
    means[i] = sum / held.length;
  }
  return means;
}

// Steps of all stages in a row: 1, 2, 3, … and where each stage begins.
export function along(steps) {
  const x = steps.step.map((_, i) => i + 1);
  const marks = [];
  steps.stage.forEach((name, i) => {
    if (i === 0 || steps.stage[i - 1] !== name) marks.push({ at: i + 1, name });
  });
  return { x, marks };
}

// What is held, and what the server sent of what came after it.
export function grown(before, more) {
  if (!before || more.reset) return more;
  const [length, added] = [before.step.length, more.step.length];
  if (!added) return before;
  const joined = (a, b) => {
    const column = (of, name, n) => of[name] ?? new Array(n).fill(null);
    const names = new Set([...Object.keys(a), ...Object.keys(b)]);
    return Object.fromEntries([...names].map((n) => [n, column(a, n, length).concat(column(b, n, added))]));
  };
  const rows = ["stage", "step", "ordinal", "time"].map((name) => [name, before[name].concat(more[name])]);
  return {
    ...Object.fromEntries(rows),
    cursor: more.cursor,
    metrics: joined(before.metrics, more.metrics),
    phaseSeconds: joined(before.phaseSeconds, more.phaseSeconds),
  };
}
