// Rollouts by step, reward and verdict. What a model wrote is text of a text node, whatever it looks like.

import { useData } from "./data.js";
import { number } from "./format.js";
import { Problem } from "./parts.js";
import { html, useEffect, useRef, useState } from "./ui.js";

const ORDERS = { group: "by problem", reward: "best first", worst: "worst first", longest: "longest first" };

export function Samples({ path, version, here, parameters }) {
  const { stage, step, verdict = "", order = "group", group, index } = parameters;
  const places = useData(`${path}/samples/steps`);
  useEffect(() => {
    if (version) places.reload();
  }, [version]);
  if (!places.data) return html`<${Problem} error=${places.error} />`;
  const steps = places.data.steps;
  if (!steps.length) return html`<p class="empty">No rollout has been stored yet.</p>`;
  const at = steps.find((s) => s.stage === stage && String(s.step) === step) ?? steps[steps.length - 1];
  const go = (changes) => {
    const all = { stage: at.stage, step: at.step, verdict, order, ...changes };
    location.hash = `${here}/samples?${new URLSearchParams(Object.entries(all).filter(([, v]) => v !== "" && v !== undefined))}`;
  };
  return html`<${Problem} error=${places.error} />
    <div class="bar">
      <label>Step <select value=${`${at.stage} ${at.step}`} onChange=${(e) => go(steps[e.target.selectedIndex])}>
        ${steps.map((s) => html`<option value=${`${s.stage} ${s.step}`}>${s.stage}, step ${s.step}</option>`)}</select></label>
      <label>Order <select value=${order} onChange=${(e) => go({ order: e.target.value })}>
        ${Object.entries(ORDERS).map(([id, words]) => html`<option value=${id}>${words}</option>`)}</select></label>
    </div>
    <${Rows} path=${path} at=${at} verdict=${verdict} order=${order} go=${go} open=${group === undefined ? null : { group, index }} />`;
}

function Rows({ path, at, verdict, order, go, open }) {
  const { data, error } = useData(`${path}/samples`, { stage: at.stage, step: at.step, verdict, order });
  if (!data) return html`<${Problem} error=${error} />`;
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
          const here = open && String(r.group) === open.group && String(r.index) === open.index;
          return html`<tr key=${`${r.group}/${r.index}/${r.draw}`} class=${here ? "chosen" : ""}>
            <th scope="row"><button type="button" class="link" aria-pressed=${String(Boolean(here))} onClick=${() => go({ group: r.group, index: r.index })}>${r.problem} · ${r.index}</button></th>
            <td class="number">${number(r.reward)}</td><td>${r.verdict}${r.dropped ? " (dropped)" : ""}</td><td class="number">${number(r.tokens)}</td></tr>`;
        })}</tbody>
      </table>${data.rows.length < data.total && html`<p class="hint">The first ${data.rows.length} of ${data.total}.</p>`}</div>
      <${One} path=${path} at=${at} open=${open} />
    </div>`;
}

function One({ path, at, open }) {
  const where = open && { stage: at.stage, step: at.step, group: open.group, index: open.index };
  const { data, error } = useData(open && `${path}/samples/one`, where ?? {});
  if (!open) return html`<p class="empty one">Choose a rollout to read it.</p>`;
  if (!data) return html`<div class="one"><${Problem} error=${error} /></div>`;
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
