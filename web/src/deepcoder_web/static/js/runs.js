// All runs that the viewer may list: sortable, filtered by words, two of them chosen to be compared.

import { useData, useEvery, useWatch } from "./data.js";
import { age, moment, number } from "./format.js";
import { Live, Loading, Old, Phase, Problem } from "./parts.js";
import { html, useMemo, useState } from "./ui.js";

// How often ages are written anew while no run changes.
const AGES_MS = 30_000;

const COLUMNS = [
  ["name", "Run", (r) => `${r.namespace}/${r.name}`],
  ["phase", "Phase", (r) => r.phase],
  ["stage", "Stage", (r) => r.stage ?? ""],
  ["context", "Context", (r) => r.contextTokens ?? 0],
  ["step", "Step", (r) => r.step ?? 0],
  ["reward", "Reward", (r) => Number(r.reward ?? -1)],
  ["gpus", "GPUs", (r) => r.gpus],
  ["attempt", "Attempt", (r) => r.attempt],
  ["age", "Age", (r) => -Date.parse(r.created ?? 0)],
];
const NUMERIC = new Set(["context", "step", "reward", "gpus", "attempt", "age"]);

function sorted(runs, { column, descending }) {
  const value = COLUMNS.find(([id]) => id === column)[2];
  const order = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
  return [...runs].sort((a, b) => (descending ? order(b, a) : order(a, b)));
}

export function Runs() {
  const { data, error, reload } = useData("runs");
  const state = useWatch({}, reload);
  const [words, setWords] = useState("");
  const [sort, setSort] = useState({ column: "age", descending: false });
  const [chosen, setChosen] = useState([]);
  const [, setTold] = useState(0);
  useEvery(AGES_MS, () => setTold((n) => n + 1));
  const shown = useMemo(() => {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (r) => `${r.namespace}/${r.name} ${r.phase} ${r.stage ?? ""} ${r.message ?? ""}`.toLowerCase();
    return sorted((data?.runs ?? []).filter((r) => wanted.every((w) => text(r).includes(w))), sort);
  }, [data, words, sort]);
  const choose = (id) => setChosen(chosen.includes(id) ? chosen.filter((c) => c !== id) : [...chosen, id].slice(-2));
  return html`<main id="main">
    <div class="title"><h1>Runs</h1><${Live} state=${state} problem=${data?.problem} /></div>
    <${Old} problem=${data?.problem} /><${Problem} error=${error} />
    <div class="bar">
      <label>Filter <input type="search" value=${words} onInput=${(e) => setWords(e.target.value)} /></label>
      ${data && html`<output class="hint">${counted(shown.length, data.runs.length)}</output>`}
      ${chosen.length === 2
        ? html`<a class="button" href=${`#/compare/${chosen.join("/")}`}>Compare the two</a>`
        : html`<span class="hint">Choose two runs to compare them.</span>`}
    </div>
    ${!data && !error && html`<${Loading} />`}
    ${data && html`<${Table} runs=${shown} sort=${sort} setSort=${setSort} chosen=${chosen} choose=${choose}
      any=${data.runs.length > 0} />`}
  </main>`;
}

function counted(shown, all) {
  const runs = `${number(all)} ${all === 1 ? "run" : "runs"}`;
  return shown === all ? runs : `${number(shown)} of ${runs}`;
}

function Table({ runs, sort, setSort, chosen, choose, any }) {
  if (!any) return html`<p class="empty">There is no DeepCoderRun here yet, or none that you may list.</p>`;
  if (!runs.length) return html`<p class="empty">No run has these words.</p>`;
  const head = ([id, title]) => {
    const mine = sort.column === id;
    const order = mine ? (sort.descending ? "descending" : "ascending") : "none";
    return html`<th scope="col" aria-sort=${order} class=${NUMERIC.has(id) ? "number" : ""}>
      <button type="button" onClick=${() => setSort({ column: id, descending: mine && !sort.descending })}>${title}</button>
    </th>`;
  };
  return html`<div class="wide" tabindex="0" role="region" aria-label="Table of runs"><table class="runs">
    <thead><tr><th scope="col"><span class="unseen">Compare</span></th>${COLUMNS.map(head)}</tr></thead>
    <tbody>${runs.map((r) => html`<${Row} key=${r.uid} run=${r} chosen=${chosen} choose=${choose} />`)}</tbody>
  </table></div>`;
}

function Row({ run, chosen, choose }) {
  const id = `${encodeURIComponent(run.namespace)}/${encodeURIComponent(run.name)}`;
  // Of a run that another release wrote the server knows no figures, and sends zeros.
  const figure = (value) => number(run.unreadable ? null : value);
  return html`<tr>
    <td><input type="checkbox" checked=${chosen.includes(id)} onChange=${() => choose(id)}
      aria-label=${`Compare ${run.namespace}/${run.name}`} /></td>
    <th scope="row"><a href=${`#/runs/${id}`}>${run.name}</a><span class="namespace">${run.namespace}</span></th>
    <td><${Phase} value=${run.phase} />${run.message && html`<span class="message">${run.message}</span>`}</td>
    <td>${run.stage ?? "–"}</td>
    <td class="number">${number(run.contextTokens)}</td>
    <td class="number">${run.display ?? "–"}</td>
    <td class="number">${number(run.reward)}</td>
    <td class="number">${figure(run.gpus)}</td>
    <td class="number">${figure(run.attempt)}</td>
    <td class="number"><time datetime=${run.created} title=${moment(run.created)}>${age(run.created)}</time></td>
  </tr>`;
}
