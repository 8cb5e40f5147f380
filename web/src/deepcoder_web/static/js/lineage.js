// The chain from export to base: each checkpoint, its parent, and whether storage still holds what it says.

import { useData, useEvery } from "./data.js";
import { moment, number, short } from "./format.js";
import { Problem } from "./parts.js";
import { html } from "./ui.js";

const WIDTH = 150;
const GAP = 34;
const HEIGHT = 62;
const LETTERS = 17; // of a line in a box, in the widest of the fonts

const AGAIN_MS = 2_000; // a long chain is checked over several requests

export function Lineage({ run, path, since }) {
  const { data, error, reload } = useData(`${path}/lineage`, {}, since);
  useEvery(data?.unfinished ? AGAIN_MS : 0, reload);
  if (!data) return error ? html`<${Problem} error=${error} />` : html`<p class="empty">Walking the chain…</p>`;
  const { nodes, problem, unfinished, checked } = data;
  return html`<${Problem} error=${error} />
    ${problem
      ? html`<p class="problem" role="alert">The chain does not hold: ${problem}</p>`
      : (unfinished || nodes.length > 0) && html`<p class="note" role="status">${outcome(nodes.length, unfinished, checked)}</p>`}
    ${nodes.length ? html`<${Graph} nodes=${nodes} base=${unfinished ? null : run.provenance?.model} /><${Table} nodes=${nodes} />` : !unfinished && html`<p class="empty">No checkpoint has been committed yet.</p>`}`;
}

function outcome(length, unfinished, checked) {
  const what = `each manifest is what the next one says it is, and each file had the size and checksum that its manifest names. Checked since ${moment(checked)}.`;
  if (!unfinished) return `All ${length} links hold: ${what}`;
  return length ? `Not all is checked yet. The newest ${length} links hold: ${what}` : "Not all is checked yet: the bucket is slow, or the newest checkpoint has many files.";
}

// Oldest on the left, before it what all began with; without a base, older links that are not checked yet.
function Graph({ nodes, base }) {
  const chain = [null, ...[...nodes].reverse()];
  const width = chain.length * (WIDTH + GAP) - GAP + 2;
  return html`<div class="wide" tabindex="0" role="region" aria-label="Lineage">
    <svg class="lineage" width=${width} height=${HEIGHT + 4} viewBox=${`0 0 ${width} ${HEIGHT + 4}`} role="img"
      aria-label=${`A chain of ${nodes.length} checkpoints from the base model; the table below has them all.`}>
      ${chain.map((n, i) => {
        const x = i * (WIDTH + GAP) + 1;
        if (!n) {
          return html`<g class="base"><title>${base}</title><rect x=${x} y="1" width=${WIDTH} height=${HEIGHT} rx="6" />
            <text x=${x + 10} y="20" class="name">${base === null ? "not checked yet" : "base model"}</text><text x=${x + 10} y="37" class="digest">${tail(base ?? "", LETTERS)}</text></g>`;
        }
        return html`<g class=${n.final ? "final" : ""}><title>${n.stage}, step ${n.step}</title>
          <path d=${`M${x - GAP} ${HEIGHT / 2} H${x - 6} m-5 -4 l5 4 l-5 4`} class="arrow" />
          <rect x=${x} y="1" width=${WIDTH} height=${HEIGHT} rx="6" />
          <text x=${x + 10} y="20" class="name">${head(n.stage, LETTERS - 7 - `${n.step}`.length)}, step ${n.step}</text>
          <text x=${x + 10} y="37">${`attempt ${n.ordinal}${n.final ? ", final" : ""}`}</text>
          <text x=${x + 10} y="53" class="digest">${short(n.digest)}</text>
        </g>`;
      })}
    </svg></div>`;
}

function head(text, length) {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}

function tail(text = "", length) {
  return text.length > length ? `…${text.slice(1 - length)}` : text;
}

function Table({ nodes }) {
  return html`<div class="wide" tabindex="0" role="region" aria-label="Checkpoints"><table>
    <thead><tr><th scope="col">Stage</th><th scope="col" class="number">Step</th><th scope="col" class="number">Attempt</th>
      <th scope="col">Digest</th><th scope="col">Parent</th><th scope="col">Committed</th></tr></thead>
    <tbody>${nodes.map(
      (n) => html`<tr key=${n.digest}><th scope="row">${n.stage}</th><td class="number">${number(n.step)}</td><td class="number">${n.ordinal}</td>
        <td><code title=${n.digest}>${short(n.digest)}</code></td><td>${n.parent ? html`<code title=${n.parent}>${short(n.parent)}</code>` : "the base model"}</td><td>${moment(n.committed)}</td></tr>`,
    )}</tbody></table></div>`;
}
