// One run: what it is, where it stands, and a tab for each question that people ask of it.

import { runPath } from "./api.js";
import { Curves } from "./curves.js";
import { settled, useData, useEvery, useWatch } from "./data.js";
import { Evaluations } from "./evaluations.js";
import { duration, gpuHours, moment, number, percent, short } from "./format.js";
import { Lineage } from "./lineage.js";
import { Facts, Live, Loading, Old, Phase, Problem, Tabs } from "./parts.js";
import { Pool } from "./pool.js";
import { Samples } from "./samples.js";
import { Timeline } from "./timeline.js";
import { html, useEffect, useState } from "./ui.js";

// How often a run that does not change is loaded again: its times and its GPU-hours grow all the same.
const LOOK_MS = 30_000;

const TABS = [
  ["overview", "Overview"],
  ["curves", "Curves"],
  ["samples", "Rollouts"],
  ["evaluations", "Evaluations"],
  ["lineage", "Lineage"],
  ["pool", "Judges"],
];

export function Run({ namespace, name, tab, parameters }) {
  const path = runPath({ namespace, name });
  const run = useData(path);
  const [changes, setChanges] = useState(0);
  const state = useWatch({ namespace, name }, () => {
    run.reload();
    setChanges((n) => n + 1);
  });
  useEvery(LOOK_MS, run.reload);
  const since = { changes, version: run.data && settled(run.data) };
  useEffect(() => {
    document.title = `${name} · DeepCoder`;
    return () => (document.title = "DeepCoder runs");
  }, [name]);
  const here = `#/runs/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`;
  const shown = TABS.some(([id]) => id === tab) ? tab : "overview";
  const Shown = { overview: Overview, curves: Curves, samples: Samples, evaluations: Evaluations, lineage: Lineage, pool: Pool };
  return html`<main id="main">
    <div class="title">
      <h1>${name} <span class="namespace">${namespace}</span></h1>
      ${run.data && html`<${Phase} value=${run.data.phase} />`}
      <${Live} state=${state} problem=${run.data?.problem} />
    </div>
    <${Old} problem=${run.data?.problem} /><${Problem} error=${run.error} />
    <${Tabs} tabs=${TABS} current=${shown} href=${(id) => `${here}/${id}`} label="About the run" />
    <section id="panel" role="tabpanel" aria-labelledby=${`tab-${shown}`}>
      ${run.data ? html`<${Shown[shown]} run=${run.data} path=${path} since=${since} here=${here} parameters=${parameters} />` : !run.error && html`<${Loading} />`}
    </section>
  </main>`;
}

function Overview({ run, path, since }) {
  const { usage = {}, provenance = {} } = run;
  const latest = run.latestCheckpoint;
  return html`
    ${run.message && html`<p class=${run.phase === "Failed" ? "problem" : "note"}>${run.message}</p>`}
    ${run.silentSeconds && html`<p class="problem">The trainer's last report was ${duration(run.silentSeconds)} ago, and the figures are as old. If other
      runs report, this trainer hangs and is stopped after its stage's stallSeconds; if none does, check the operator and the network between them.</p>`}
    <${Facts} of=${[
      ["Stage", run.stage && `${run.stage} (${number(run.contextTokens)} tokens)`],
      ["Step", run.display],
      ["Reward", run.reward && number(run.reward)],
      ["Truncated", run.truncatedRatio && percent(run.truncatedRatio)],
      ["Last report", run.reported && moment(run.reported)],
      ["Attempt", number(run.attempt)],
      ["GPUs now", number(run.gpus)],
      ["Used", gpuHours(usage.gpuSeconds)],
      ["Wasted", gpuHours(usage.wastedGpuSeconds)],
      ["Judge time", duration(usage.sandboxSeconds)],
      ["Cost", usage.cost === null ? null : `${number(usage.cost)}${usage.estimated ? " (estimated)" : ""}`],
      ["Started", moment(run.startTime)],
      ["Ended", run.completionTime && moment(run.completionTime)],
      ["Last checkpoint", latest && `${latest.stage}, step ${number(latest.step)}, ${moment(latest.committedTime)}`],
    ]} />
    <h2>Stages and attempts</h2>
    <${Timeline} path=${path} since=${since} />
    <h2>Conditions</h2>
    <div class="wide" tabindex="0" role="region" aria-label="Conditions"><table>
      <thead><tr><th scope="col">Condition</th><th scope="col">Status</th><th scope="col">Reason</th>
        <th scope="col">Message</th><th scope="col">Since</th></tr></thead>
      <tbody>${(run.conditions ?? []).map(
        (c) => html`<tr key=${c.type}><th scope="row">${c.type}</th><td>${c.status}</td><td>${c.reason}</td>
          <td class="prose">${c.message}</td><td>${moment(c.lastTransitionTime)}</td></tr>`,
      )}</tbody>
    </table></div>
    <h2>Made from</h2>
    <${Facts} of=${[
      ["Model", provenance.model],
      ["Dataset", provenance.datasetDigest && html`<code>${short(provenance.datasetDigest)}</code>`],
      ["Config", html`<code>${short(provenance.configDigest)}</code>`],
      ["Code", provenance.codeDigest && html`<code>${short(provenance.codeDigest)}</code>`],
      ["Image", provenance.image],
      ["Seed", provenance.seed],
      ["Storage", provenance.storage && html`<code>${provenance.storage}</code>`],
    ]} />`;
}
