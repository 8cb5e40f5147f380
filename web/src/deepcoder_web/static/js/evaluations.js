// Evaluations with their intervals: points and whiskers, and the figures beside them.

import { useData } from "./data.js";
import { interval, number, percent } from "./format.js";
import { Loading, Problem } from "./parts.js";
import { html } from "./ui.js";

const WIDTH = 320;

export function Evaluations({ path, since }) {
  const { data, error } = useData(`${path}/evaluations`, {}, since);
  if (!data) return html`<${Loading} error=${error} />`;
  const damaged = data.damaged.map((text) => html`<p key=${text} class="problem">An evaluation is left out: ${text}</p>`);
  if (!data.evaluations.length) return html`<${Problem} error=${error} />${damaged.length ? damaged : html`<p class="empty">Nothing has been evaluated yet.</p>`}`;
  const rated = data.evaluations.some((e) => e.rating);
  const noted = data.evaluations.filter((e) => e.notes.length);
  return html`<${Problem} error=${error} />${damaged}
    <div class="wide" tabindex="0" role="region" aria-label="Evaluations"><table>
      <thead><tr><th scope="col">Set</th><th scope="col">Model</th><th scope="col">pass@1, 95 % interval</th><td></td><th scope="col">pass@k</th>
        ${rated && html`<th scope="col">Rating</th>`}
        <th scope="col" class="number">Truncated</th><th scope="col" class="number">Tokens</th><th scope="col" class="number">Problems</th><th scope="col" class="number">Unjudged</th></tr></thead>
      <tbody>${data.evaluations.map((e) => html`<tr key=${`${e.key}/${e.target}/${e.dataset}`}>
        <th scope="row">${e.dataset}</th><td>${e.target}</td><td class="interval">${interval(e.passAt1)}</td><td><${Whisker} of=${e.passAt1} /></td>
        <td>${Object.entries(e.passAtK).filter(([k]) => k !== "1").map(([k, v]) => `@${k}\u00a0${percent(v.mean)}`).join(", ") || "–"}</td>
        ${rated && html`<td>${rating(e.rating)}</td>`}
        <td class="number">${percent(e.truncatedRatio)}</td><td class="number">${number(e.responseTokensMean)}</td>
        <td class="number">${number(e.problems)}</td><td class="number">${number(e.unjudged)}</td></tr>`)}</tbody>
    </table></div>
    ${noted.map((e) => html`<p class="note">${e.target} on ${e.dataset}: ${e.notes.join("; ")}</p>`)}
    ${data.comparisons.length > 0 && html`<h2>Paired by problem</h2>
      <div class="wide" tabindex="0" role="region" aria-label="Paired differences"><table>
        <thead><tr><th scope="col">Set</th><th scope="col">From</th><th scope="col">To</th><th scope="col">Difference of pass@1, 95 % interval</th><th scope="col" class="number">p</th></tr></thead>
        <tbody>${data.comparisons.map((c) => html`<tr><th scope="row">${c.dataset}</th><td>${c.before}</td><td>${c.after}</td><td>${interval(c.difference)}</td><td class="number">${number(c.pValue)}</td></tr>`)}</tbody>
      </table></div>`}`;
}

// An interval takes several contests.
function rating(of) {
  if (!of) return "–";
  const ends = [of.low, of.high].some((end) => end === null || end === undefined) ? "" : ` (${number(of.low)} to ${number(of.high)})`;
  return `${number(of.mean)}${ends}`;
}

function Whisker({ of }) {
  if (!of) return null;
  const x = (v) => Math.min(1, Math.max(0, v)) * (WIDTH - 12) + 6;
  return html`<svg class="whisker" width=${WIDTH} height="22" viewBox=${`0 0 ${WIDTH} 22`} aria-hidden="true">
    <line x1="6" x2=${WIDTH - 6} y1="11" y2="11" class="rule" />
    <line x1=${x(of.low)} x2=${x(of.high)} y1="11" y2="11" class="bar" /><circle cx=${x(of.mean)} cy="11" r="4.5" /></svg>`;
}
