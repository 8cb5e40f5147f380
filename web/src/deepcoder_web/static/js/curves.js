// The curves of one run, all on the same axis of steps, through all its stages.

import { Chart } from "./chart.js";
import { useSteps } from "./data.js";
import { Loading, Problem } from "./parts.js";
import { along, charts, SMOOTHINGS } from "./series.js";
import { html, useMemo, useState } from "./ui.js";

export function Curves({ path, since }) {
  const { steps, error } = useSteps(path, { version: since.changes });
  const [smoothing, setSmoothing] = useState("None");
  const drawn = useMemo(() => steps && steps.step.length > 0 && { ...along(steps), charts: charts(steps, smoothing) }, [steps, smoothing]);
  if (!steps) return html`<${Loading} error=${error} />`;
  if (!drawn) return html`<${Problem} error=${error} /><p class="empty">No step has been trained yet.</p>`;
  return html`<${Problem} error=${error} />
    <div class="bar">
      <label>Smoothing <select value=${smoothing} onChange=${(e) => setSmoothing(e.target.value)}>
        ${SMOOTHINGS.map((s) => html`<option value=${s}>${s}</option>`)}</select></label>
      <span class="hint">Drag to zoom in, double-click to see all.</span>
    </div>
    <div class="charts">${drawn.charts.map((c) => html`<${Chart} key=${c.title} title=${c.title} x=${drawn.x} lines=${c.lines} marks=${drawn.marks} />`)}</div>`;
}
