// uPlot under a component: one chart, its cursor in step with all others, and its figures in words.
// The canvas is for eyes; a caption says the same for screen readers, and lists the newest value of each line.

import uPlot from "../vendor/uPlot.mjs";
import { number } from "./format.js";
import { html, useEffect, useMemo, useRef } from "./ui.js";

const HEIGHT = 200;
const COLOURS = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6", "--line-7", "--line-8"];
const SYNC = uPlot.sync("steps");

export function Chart({ title, x, lines, marks = [], xLabel = "step" }) {
  const place = useRef(null);
  const plot = useRef(null);
  const names = lines.map((l) => l.name).join("\n");
  const legend = useRef(null);
  const now = useRef(null);
  now.current = { x, lines, marks };
  const tell = (index) => tellValues(legend.current, now.current, index, xLabel);
  useEffect(() => {
    const element = place.current;
    const make = () => {
      const data = plot.current?.data ?? values(x, lines);
      plot.current?.destroy();
      plot.current = new uPlot(options(element, lines, now, tell), data, element);
    };
    make();
    const fit = new ResizeObserver(() => plot.current?.setSize({ width: width(element), height: HEIGHT }));
    fit.observe(element);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", make);
    addEventListener("deepcoder-theme", make);
    return () => {
      fit.disconnect();
      dark.removeEventListener("change", make);
      removeEventListener("deepcoder-theme", make);
      plot.current.destroy();
      plot.current = null;
    };
  }, [names]);
  useEffect(() => {
    plot.current?.setData(values(x, lines), !zoomed(plot.current));
    tell(plot.current?.cursor.idx ?? null);
  }, [x, lines]);
  const words = useMemo(() => summary(title, x, lines, xLabel), [title, x, lines]);
  return html`<figure class="chart">
    <figcaption><h2>${title}</h2></figcaption>
    <div ref=${place} aria-hidden="true"></div>
    <p class="legend" ref=${legend} aria-hidden="true">
      <span class="where"></span>
      ${lines.map((l, i) => html`<span><i class=${`swatch c${(i % COLOURS.length) + 1}`}></i>${l.name} <b></b></span>`)}
    </p>
    <p class="unseen">${words}</p>
  </figure>`;
}

// The values under the cursor, without one the newest: written past the component, since a cursor moves often.
function tellValues(legend, { x, lines }, index, xLabel) {
  if (!legend) return;
  const told = (all) => (index === null ? newestOf(x, all, xLabel) : number(all[index]));
  legend.querySelector(".where").textContent = `${xLabel} ${number(index === null ? newest(x) : x[index])}`;
  legend.querySelectorAll("b").forEach((element, i) => (element.textContent = told(lines[i].values)));
}

// A line that ends before the others says where.
function newestOf(x, all, xLabel) {
  let at = all.length - 1;
  while (at >= 0 && (all[at] === null || all[at] === undefined)) at--;
  const value = number(all[at]);
  return at < 0 || at === x.length - 1 ? value : `${value} at ${xLabel} ${number(x[at])}`;
}

function values(x, lines) {
  return [x, ...lines.map((l) => l.values)];
}

function width(element) {
  return Math.max(240, element.clientWidth);
}

// Whoever has zoomed in keeps that view while new steps arrive.
function zoomed(plot) {
  const x = plot.data[0];
  const { min, max } = plot.scales.x;
  return x.length > 1 && min !== null && (min > x[0] || max < x[x.length - 1]);
}

// A canvas knows no custom properties, and one that depends on the scheme is resolved on an element alone.
function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const resolved = getComputedStyle(probe).color;
  probe.remove();
  return resolved;
}

function options(element, lines, now, tell) {
  const [quiet, rule] = [colour("--quiet"), colour("--rule")];
  const axis = { stroke: quiet, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule } };
  return {
    width: width(element),
    height: HEIGHT,
    legend: { show: false },
    cursor: { sync: { key: SYNC.key }, points: { size: 6 } },
    scales: { x: { time: false } },
    axes: [axis, { ...axis, size: 56, values: (_, ticks) => ticks.map((t) => number(t)) }],
    series: [{}, ...lines.map((l, i) => ({ label: l.name, stroke: colour(COLOURS[i % COLOURS.length]), width: 1.5, spanGaps: true, points: { show: l.values.length < 40 } }))],
    hooks: {
      draw: [(plot) => drawMarks(plot, now.current.marks, quiet)],
      setCursor: [(plot) => tell(plot.cursor.idx ?? null)],
    },
  };
}

// Where a stage begins: a line and its name.
function drawMarks(plot, marks, colour) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour;
  ctx.font = `${11 * devicePixelRatio}px sans-serif`;
  ctx.textAlign = "left";
  ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
  for (const { at, name } of marks) {
    const x = plot.valToPos(at, "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.fillText(name, x + 4 * devicePixelRatio, bbox.top + 12 * devicePixelRatio);
  }
  ctx.restore();
}

export function newest(values) {
  for (let i = values.length - 1; i >= 0; i--) if (values[i] !== null && values[i] !== undefined) return values[i];
  return null;
}

function summary(title, x, lines, xLabel) {
  const one = ({ name, values: all }) => {
    let [low, high] = [Infinity, -Infinity];
    for (const v of all) {
      if (v === null || v === undefined) continue;
      if (v < low) low = v;
      if (v > high) high = v;
    }
    if (low === Infinity) return `${name}: no values yet`;
    return `${name}: now ${newestOf(x, all, xLabel)}, between ${number(low)} and ${number(high)}`;
  };
  return `${title}, ${x.length} points to ${xLabel} ${number(newest(x))}. ${lines.map(one).join("; ")}.`;
}
