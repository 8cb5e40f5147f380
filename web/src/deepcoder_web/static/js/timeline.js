// Stages and attempts over time, with what ended each: a picture, and the same as a table for who cannot see it.

import { useData } from "./data.js";
import { duration, moment, number } from "./format.js";
import { Loading, Problem } from "./parts.js";
import { html, useMemo } from "./ui.js";

const ROW = 30;
const LABEL = 130;
const WIDTH = 900;

const TONE = { Complete: "good", Stopped: "quiet", Running: "busy", Failed: "bad", Preempted: "warn", Lost: "bad", Unknown: "warn" };

export function Timeline({ path, since }) {
  const { data, error } = useData(`${path}/attempts`, {}, since);
  if (!data) return html`<${Loading} error=${error} />`;
  if (!data.attempts.length) return html`<p class="empty">No attempt has been made yet.</p>`;
  return html`<${Problem} error=${error} /><${Picture} attempts=${data.attempts} /><${Table} attempts=${data.attempts} />`;
}

function Picture({ attempts }) {
  const stages = useMemo(() => [...new Set(attempts.map((a) => a.stage))], [attempts]);
  const now = Date.now();
  const begin = (a) => Date.parse(a.started);
  const end = (a) => (a.ended ? Date.parse(a.ended) : now);
  const from = Math.min(...attempts.map(begin));
  const to = Math.max(from + 1000, ...attempts.map(end));
  const x = (t) => LABEL + ((t - from) / (to - from)) * (WIDTH - LABEL - 10);
  const height = stages.length * ROW + 24;
  const words = `${attempts.length} attempts in ${stages.length} stages over ${duration((to - from) / 1000)}; the table below has them all.`;
  return html`<div class="wide" tabindex="0" role="region" aria-label="Timeline">
    <svg class="timeline" viewBox=${`0 0 ${WIDTH} ${height}`} role="img" aria-label=${words}>
      ${stages.map(
        (stage, i) => html`<text x="0" y=${i * ROW + 19} class="stage">${clipped(stage, 18)}</text>
          <line x1=${LABEL} x2=${WIDTH - 10} y1=${i * ROW + 26} y2=${i * ROW + 26} class="rule" />`,
      )}
      ${attempts.map((a) => {
        const width = Math.max(3, x(end(a)) - x(begin(a)));
        const y = stages.indexOf(a.stage) * ROW + 4;
        return html`<g class=${`attempt ${TONE[a.state] ?? "busy"}`}>
          <rect x=${x(begin(a))} y=${y} width=${width} height="18" rx="3" />
          ${width > 26 && html`<text x=${x(begin(a)) + 5} y=${y + 13}>${a.ordinal}</text>`}
          <title>${`attempt ${a.ordinal}: ${a.state}${a.reason ? `, ${a.reason}` : ""}`}</title>
        </g>`;
      })}
      <text x=${LABEL} y=${height - 4} class="axis">${moment(from)}</text>
      <text x=${WIDTH - 10} y=${height - 4} class="axis" text-anchor="end">${moment(to)}</text>
    </svg>
  </div>`;
}

function Table({ attempts }) {
  return html`<div class="wide" tabindex="0" role="region" aria-label="Attempts"><table>
    <thead><tr><th scope="col">Stage</th><th scope="col" class="number">Attempt</th><th scope="col">State</th>
      <th scope="col">Cause</th><th scope="col" class="number">Step</th><th scope="col">Began</th><th scope="col" class="number">Took</th></tr></thead>
    <tbody>${attempts.map(
      (a) => html`<tr key=${a.ordinal}><th scope="row">${a.stage}</th><td class="number">${a.ordinal}</td>
        <td><span class=${`phase ${TONE[a.state] ?? "busy"}`}>${a.state}</span></td>
        <td class="prose">${[a.reason, a.message].filter(Boolean).join(": ") || "–"}</td>
        <td class="number">${number(a.step)}</td><td>${moment(a.started)}</td>
        <td class="number">${duration(((a.ended ? Date.parse(a.ended) : Date.now()) - Date.parse(a.started)) / 1000)}</td></tr>`,
    )}</tbody>
  </table></div>`;
}

function clipped(text, length) {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}
