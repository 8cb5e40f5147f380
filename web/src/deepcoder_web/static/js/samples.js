// Rollouts by step, reward and verdict. What a model wrote is text of a text node, whatever it looks like.

import { useData } from "./data.js";
import { number } from "./format.js";
import { Loading, Problem } from "./parts.js";
import { html, useRef, useState } from "./ui.js";

const ORDERS = { group: "by problem", reward: "best first", worst: "worst first", longest: "longest first" };

// The stored step that is nearest to the one that is asked for, of the same stage where that has any.
export function nearest(steps, stage, wanted) {
  const same = steps.filter((s) => s.stage === stage);
  const distance = (s) => Math.abs(s.step - wanted);
  return (same.length ? same : steps).reduce((best, s) => (distance(s) < distance(best) ? s : best));
}

// An address without a draw means the one that was trained on.
export function isOpen(row, { group, index, draw }) {
  if (String(row.group) !== group || String(row.index) !== index) return false;
  return draw === undefined ? !row.dropped : String(row.draw) === draw;
}

export function Samples({ run, path, since, here, parameters }) {
  const { stage, step, verdict = "", order = "group", offset, group, index, draw } = parameters;
  const places = useData(`${path}/samples/steps`, {}, { version: `${since.version} ${run.display}`, changes: since.changes });
  if (!places.data) return html`<${Loading} error=${places.error} />`;
  const steps = places.data.steps;
  if (!steps.length) return html`<p class="empty">No rollout has been stored yet.</p>`;
  const newest = steps[steps.length - 1];
  const at = step === undefined ? newest : nearest(steps, stage, Number(step));
  const ofStage = steps.filter((s) => s.stage === at.stage).map((s) => s.step);
  const go = (changes) => {
    const all = { stage: at.stage, step: at.step, verdict, order, ...changes };
    location.hash = `${here}/samples?${new URLSearchParams(Object.entries(all).filter(([, v]) => v !== "" && v !== undefined))}`;
  };
  const turn = ({ target }) => {
    const to = nearest(steps, at.stage, target.valueAsNumber || at.step);
    target.value = to.step;
    go(to);
  };
  return html`<${Problem} error=${places.error} />
    <div class="bar">
      <label>Stage <select value=${at.stage} onChange=${(e) => go(nearest(steps, e.target.value, Number.MAX_SAFE_INTEGER))}>
        ${[...new Set(steps.map((s) => s.stage))].map((name) => html`<option value=${name}>${name}</option>`)}</select></label>
      <label>Step <input type="number" class="step" min=${ofStage[0]} max=${ofStage[ofStage.length - 1]} value=${at.step}
        onChange=${turn} /></label>
      <span class="hint">of ${number(ofStage[0])} to ${number(ofStage[ofStage.length - 1])}</span>
      <label>Order <select value=${order} onChange=${(e) => go({ order: e.target.value })}>
        ${Object.entries(ORDERS).map(([id, words]) => html`<option value=${id}>${words}</option>`)}</select></label>
    </div>
    <${Rows} path=${path} since=${since} at=${at} verdict=${verdict} order=${order} offset=${offset} go=${go}
      open=${group === undefined ? null : { group, index, draw }} />`;
}

// An attempt may train a step again, and then other rollouts are in its place.
function Rows({ path, since, at, verdict, order, offset = 0, go, open }) {
  const { data, error } = useData(`${path}/samples`, { stage: at.stage, step: at.step, verdict, order, offset }, since);
  if (!data) return html`<${Loading} error=${error} />`;
  return html`<${Problem} error=${error} />
    <p class="chips" role="group" aria-label="Verdicts of the step">
      <button type="button" aria-pressed=${String(!verdict)} onClick=${() => go({ verdict: "" })}>all</button>
      ${Object.entries(data.verdicts).map(
        ([name, count]) => html`<button type="button" aria-pressed=${String(verdict === name)} onClick=${() => go({ verdict: name })}>${name} <b>${count}</b></button>`,
      )}
    </p>
    <div class="split">
      <div class="wide list" tabindex="0" role="region" aria-label="Rollouts"><table>
        <thead><tr><th scope="col">Problem</th><th scope="col" class="number">Reward</th><th scope="col">Verdict</th><th scope="col" class="number">Tokens</th></tr></thead>
        <tbody>${data.rows.map((r) => {
          const here = open && isOpen(r, open);
          return html`<tr key=${`${r.group}/${r.index}/${r.draw}`} class=${here ? "chosen" : ""}>
            <th scope="row"><button type="button" class="link" aria-pressed=${String(Boolean(here))} onClick=${() => go({ offset, group: r.group, index: r.index, draw: r.draw })}>${r.problem} · ${r.index}</button></th>
            <td class="number">${number(r.reward)}</td><td>${r.verdict}${r.dropped ? " (dropped)" : ""}</td><td class="number">${number(r.tokens)}</td></tr>`;
        })}</tbody>
      </table>${data.rows.length < data.total && html`<${Pages} data=${data} turn=${(to) => go({ offset: to })} />`}</div>
      <${One} path=${path} since=${since} at=${at} open=${open} />
    </div>`;
}

function Pages({ data: { offset, page, rows, total }, turn }) {
  const end = offset + rows.length;
  return html`<p class="bar"><span class="hint">${number(offset + 1)} to ${number(end)} of ${number(total)}</span>
    <button type="button" disabled=${offset === 0} onClick=${() => turn(Math.max(0, offset - page))}>Previous</button>
    <button type="button" disabled=${end >= total} onClick=${() => turn(end)}>Next</button></p>`;
}

function One({ path, since, at, open }) {
  const where = open ? { stage: at.stage, step: at.step, ...open } : {};
  const { data, error } = useData(open && `${path}/samples/one`, where, since);
  if (!open) return html`<p class="empty one">Choose a rollout to read it.</p>`;
  if (!data) return html`<div class="one"><${Loading} error=${error} /></div>`;
  return html`<article class="one" aria-label="Rollout">
    <p><b>${data.verdict}</b>, reward ${number(data.reward)}, ${number(data.responseTokens)} of ${number(data.limitTokens)} tokens,
      ended by ${data.finish}, judged in ${number(data.judgeSeconds)} s${data.versions.length > 1 ? `, sampled with ${data.versions.length} versions of the weights` : ""}</p>
    <h2>Prompt</h2><${Text} label="Prompt" text=${data.prompt} />
    <h2>Response</h2><${Text} label="Response" text=${data.response} />
  </article>`;
}

function Text({ label, text }) {
  const [all, setAll] = useState(false);
  const long = text.length > 20000 && !all;
  const box = useRef(null);
  return html`<pre ref=${box} tabindex="0" role="region" aria-label=${label}>${long ? text.slice(0, 20000) : text}</pre>
    ${long && html`<button type="button" onClick=${() => setAll(true)}>Show all ${number(text.length)} characters</button>`}`;
}
