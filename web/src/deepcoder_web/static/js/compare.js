// Two runs side by side: their settings where they differ, their curves in the same charts, their evaluations paired.

import { runPath } from "./api.js";
import { Chart } from "./chart.js";
import { settled, useData, useSteps, useWatch } from "./data.js";
import { interval, number } from "./format.js";
import { Live, Old, Phase, Problem } from "./parts.js";
import { CHARTS, smooth } from "./series.js";
import { html, useEffect, useMemo, useState } from "./ui.js";

// Two noisy curves in one chart hide each other.
const SMOOTHED = 5;

export function Compare({ a, b }) {
  const [left, right] = [useOne(a), useOne(b)];
  const names = a.name === b.name ? [`${a.namespace}/${a.name}`, `${b.namespace}/${b.name}`] : [a.name, b.name];
  const drawn = useMemo(() => (left.steps && right.steps ? together(left.steps, right.steps, names) : []), [left.steps, right.steps]);
  useEffect(() => {
    document.title = `${names.join(" and ")} · DeepCoder`;
    return () => (document.title = "DeepCoder runs");
  }, names);
  const old = left.run?.problem ?? right.run?.problem;
  return html`<main id="main">
    <div class="title"><h1>${names[0]} and ${names[1]}</h1><${Live} state=${both(left.state, right.state)} problem=${old} /></div>
    <${Old} problem=${old} />
    <${Problem} error=${left.error} /><${Problem} error=${right.error} />
    ${left.run && right.run && html`<${Sides} names=${names} runs=${[left.run, right.run]} />`}
    ${left.evaluations && right.evaluations && html`<${Scores} names=${names} of=${[left.evaluations, right.evaluations]} />`}
    <h2>Curves</h2>
    ${drawn.length ? html`<p class="hint">Each point is the mean of ${SMOOTHED} steps. Steps are counted from each run's first one, through all its stages.</p>
      <div class="charts">${drawn.map((c) => html`<${Chart} key=${c.title} ...${c} />`)}</div>` : html`<p class="empty">No step has been trained yet.</p>`}
  </main>`;
}

function useOne(run) {
  const path = runPath(run);
  const about = useData(path);
  const [changes, setChanges] = useState(0);
  const evaluations = useData(`${path}/evaluations`, {}, { changes, version: about.data && settled(about.data) });
  const steps = useSteps(path);
  const state = useWatch(run, () => {
    about.reload();
    steps.reload();
    setChanges((n) => n + 1);
  });
  return { run: about.data, steps: steps.steps, evaluations: evaluations.data?.evaluations, state, error: about.error ?? steps.error ?? evaluations.error };
}

// Live is what both are.
function both(left, right) {
  return left === "live" ? right : left;
}

function together(a, b, names) {
  const length = Math.max(a.step.length, b.step.length);
  const x = Array.from({ length }, (_, i) => i + 1);
  const padded = (values = []) => values.concat(new Array(length - values.length).fill(null));
  return CHARTS.map(([title, [[column, words]]]) => ({
    title: `${title}: ${words}`,
    x,
    lines: [a, b].flatMap((s, i) => (s.metrics[column] ? [{ name: names[i], values: padded(smooth(s.metrics[column], SMOOTHED)) }] : [])),
  })).filter((c) => c.lines.length && length);
}

function Sides({ names, runs }) {
  const differing = differences(runs[0].settings ?? {}, runs[1].settings ?? {});
  const rows = [
    ["Phase", ...runs.map((r) => html`<${Phase} value=${r.phase} />`)],
    ["Step", ...runs.map((r) => r.display ?? "–")],
    ["Reward", ...runs.map((r) => number(r.reward))],
    ...differing,
  ];
  return html`<h2>Where they differ</h2>
    <div class="wide" tabindex="0" role="region" aria-label="Where the runs differ"><table>
      <thead><tr><td></td>${names.map((n) => html`<th scope="col">${n}</th>`)}</tr></thead>
      <tbody>${rows.map(([what, ...values]) => html`<tr key=${what}><th scope="row"><code>${what}</code></th>${values.map((v) => html`<td>${v}</td>`)}</tr>`)}</tbody>
    </table></div>`;
}

// Leaves of two documents that differ, as [path, left, right].
export function differences(a, b) {
  const [left, right] = [leaves(a), leaves(b)];
  const paths = [...new Set([...Object.keys(left), ...Object.keys(right)])].sort();
  return paths.filter((p) => left[p] !== right[p]).map((p) => [p, left[p] ?? "–", right[p] ?? "–"]);
}

function leaves(value, path = "", into = {}) {
  if (value !== null && typeof value === "object") {
    for (const [key, below] of Object.entries(value)) leaves(below, path ? `${path}.${key}` : key, into);
  } else {
    into[path] = String(value);
  }
  return into;
}

// Evaluations are listed oldest first, and in each the model that was trained last comes last.
function newestBySet(evaluations) {
  return new Map(evaluations.map((e) => [e.dataset, e]));
}

function Scores({ names, of }) {
  const [one, two] = of.map(newestBySet);
  const both = [...one.keys()].filter((set) => two.has(set)).map((set) => [one.get(set), two.get(set)]);
  if (!both.length) return null;
  return html`<h2>Evaluations of the same sets</h2>
    <div class="wide" tabindex="0" role="region" aria-label="Evaluations of the same sets"><table>
      <thead><tr><th scope="col">Set</th>${names.map((n) => html`<th scope="col">${n}: pass@1</th>`)}</tr></thead>
      <tbody>${both.map(([one, two]) => html`<tr><th scope="row">${one.dataset}</th><td>${one.target}: ${interval(one.passAt1)}</td><td>${two.target}: ${interval(two.passAt1)}</td></tr>`)}</tbody>
    </table></div>
    <p class="hint">Intervals of 95 %, each run's own; the runs' problems are not paired here.</p>`;
}
