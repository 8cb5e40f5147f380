// The judges that a run has: how many, how busy, and what they wait for.

import { useData, useEvery } from "./data.js";
import { moment, number } from "./format.js";
import { Facts, Loading, Problem } from "./parts.js";
import { html } from "./ui.js";

// How often the figures are loaded again. They change by themselves, also while the run waits for judges and does not
// change, and none of them comes from the bucket.
const LOOK_MS = 10_000;

export function Pool({ path, since }) {
  const { data, error, reload } = useData(`${path}/pool`, {}, { version: since.changes });
  useEvery(LOOK_MS, reload);
  if (!data) return html`<${Loading} error=${error} />`;
  if (!data.pool) return html`<${Problem} error=${error} /><p class="empty">${data.why}</p>`;
  const { name, status = {}, spec = {} } = data.pool;
  const busy = status.slots ? status.busySlots / status.slots : 0;
  return html`<${Problem} error=${error} />
    <${Facts} of=${[
      ["SandboxPool", name],
      ["Pods ready", `${number(status.readyReplicas ?? 0)} of ${number(status.desiredReplicas ?? 0)}`],
      ["Fewest and most pods", `${number(spec.minReplicas)} to ${number(spec.maxReplicas)}`],
      ["Slots busy", `${number(status.busySlots ?? 0)} of ${number(status.slots ?? 0)}`],
      ["Programs waiting", number(status.queueDepth ?? 0)],
    ]} />
    ${(status.avoidedNodes ?? []).map((n) => html`<p key=${n.name} class="problem">No judge is started on node ${n.name}, where one failed to start (${moment(n.since)}): ${n.message}</p>`)}
    <label class="meter">Busy <meter min="0" max="1" value=${busy}>${Math.round(100 * busy)} %</meter></label>
    <div class="wide" tabindex="0" role="region" aria-label="Conditions of the pool"><table>
      <thead><tr><th scope="col">Condition</th><th scope="col">Status</th><th scope="col">Reason</th><th scope="col">Message</th><th scope="col">Since</th></tr></thead>
      <tbody>${(status.conditions ?? []).map((c) => html`<tr key=${c.type}><th scope="row">${c.type}</th><td>${c.status}</td><td>${c.reason}</td><td class="prose">${c.message}</td><td>${moment(c.lastTransitionTime)}</td></tr>`)}</tbody>
    </table></div>`;
}
