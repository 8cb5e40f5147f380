"""Draws a run in the terminal, from what the API server says. Pure.

Any field may be missing, because a status fills up while a run goes on; unknown values are drawn as a dash. The view
decides nothing, and remembers nothing but the curve that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deepcoder_cli.condition_messages import avoided_nodes, judges_trouble, progressing, troubles
from deepcoder_cli.output import age
from deepcoder_cli.snapshot import Snapshot
from deepcoder_cli.terminal import printable
from deepcoder_client.connection import Object
from deepcoder_client.settings import SILENT_SECONDS

PHASE_STYLES = {"Complete": "bold green", "Failed": "bold red", "Running": "bold cyan", "Held": "bold yellow"}
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class CurvePoint:
    """A step as seen while the run was followed."""

    stage: str
    step: int
    reward: float
    truncated: float


def phase_of(run: Object) -> str:
    """Return the run's phase; `Pending` before the operator has seen the run."""
    return str(run.get("status", {}).get("phase", "Pending"))


def curve_point(run: Object) -> CurvePoint | None:
    """Return the last reported step; None if it has no reward."""
    status = run.get("status", {})
    progress, stage = status.get("progress"), status.get("currentStage")
    if not progress or not stage or progress.get("reward") is None:
        return None
    truncated = float(progress.get("truncatedRatio") or 0)
    return CurvePoint(stage["name"], progress["step"], float(progress["reward"]), truncated)


def sparkline(values: Sequence[float], width: int) -> str:
    """Return values from 0 to 1 as one line of blocks, the newest on the right."""
    shown = values[-width:]
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(max(0.0, v) * len(BLOCKS)))] for v in shown)


def render(snapshot: Snapshot, curve: Sequence[CurvePoint], now: datetime) -> RenderableType:
    """Return the live view."""
    run = snapshot.run
    status = run.get("status", {})
    parts: list[RenderableType] = [_headline(run, status), _stages(run, status)]
    if doing := curating(status.get("progress", {})):
        parts.append(_pair("curating", doing))
    if curve:
        parts.append(_curves(curve))
    parts.append(_judges(snapshot.pool, status))
    parts.append(_pods(snapshot.pods, now))
    if notes := _notes(status, snapshot.pool, now):
        parts.append(notes)
    parts += [Text(printable(line), style="yellow") for line in snapshot.withheld]
    title = Text(f"{run['metadata']['namespace']}/{run['metadata']['name']}", style="bold")
    return Panel(Group(*parts), title=title, title_align="left", padding=(0, 1))


def _headline(run: Object, status: Object) -> RenderableType:
    phase = phase_of(run)
    stage, progress = status.get("currentStage", {}), status.get("progress", {})
    words = Text(phase, style=PHASE_STYLES.get(phase, "bold"))
    cells = [
        words,
        _pair("stage", stage.get("name")),
        _pair("context", stage.get("contextTokens")),
        _pair("step", progress.get("display")),
        _pair("reward", _ratio(progress.get("reward"))),
        _pair("truncated", _ratio(progress.get("truncatedRatio"))),
        _pair("attempt", stage.get("ordinal") or None),
    ]
    return Columns(cells, padding=(0, 3))


def curating(progress: Object) -> str | None:
    """Return the progress of the run's curation, like `verify 1,234/24,287`; None in other phases."""
    if progress.get("phase") != "Curating":
        return None
    figures = progress.get("metrics", {})
    for name in figures:
        if name.startswith("curation_") and name.endswith("_total"):
            part = name.removeprefix("curation_").removesuffix("_total")
            done, total = float(figures.get(f"curation_{part}_done", 0)), float(figures[name])
            return f"{part} {done:,.0f}/{total:,.0f}"
    return "begins"


def _stages(run: Object, status: Object) -> RenderableType:
    known = {stage["name"]: stage for stage in status.get("stages", [])}
    current = status.get("currentStage", {}).get("name")
    progress = status.get("progress", {})
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("stage", "type", "context", "", "step", "phase", "newest checkpoint"):
        table.add_column(column, no_wrap=column != "")  # on a narrow terminal, the bar shrinks
    for spec in run["spec"]["stages"]:
        stage = known.get(spec["name"], {})
        total = spec.get("maxSteps") or 0
        step = progress.get("step", 0) if spec["name"] == current and progress else stage.get("step", 0)
        bar = ProgressBar(total=max(total, 1), completed=min(step, total), width=24) if total else Text("")
        checkpoint = stage.get("checkpoint") or {}
        table.add_row(
            _text(spec["name"]),
            _text(spec.get("type", "Train")),
            _text(spec["contextTokens"]),
            bar,
            f"{step}/{total}" if total else "–",
            _text(stage.get("phase", "Pending")),
            _text(_short(checkpoint.get("uri"))),
        )
    return table


def _curves(curve: Sequence[CurvePoint]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_row(Text("reward", style="dim"), Text(sparkline([p.reward for p in curve], 72), style="green"))
    grid.add_row(Text("truncated", style="dim"), Text(sparkline([p.truncated for p in curve], 72), style="yellow"))
    return grid


def _judges(pool: Object | None, status: Object) -> RenderableType:
    verdicts = status.get("progress", {}).get("verdicts", {})
    said = "  ".join(f"{name} {count}" for name, count in sorted(verdicts.items(), key=lambda item: -item[1]))
    if pool is None:
        return Columns([_pair("judges", None), _pair("verdicts", said or None)], padding=(0, 3))
    now = pool.get("status", {})
    judges = f"{now.get('readyReplicas', 0)} ready of {now.get('desiredReplicas', 0)} wanted"
    slots = f"{now.get('busySlots', 0)}/{now.get('slots', 0)} busy, {now.get('queueDepth', 0)} queued"
    return Columns([_pair("judges", judges), _pair("slots", slots), _pair("verdicts", said or None)], padding=(0, 3))


def _pods(pods: Sequence[Object], now: datetime) -> RenderableType:
    if not pods:
        return Text("no pods", style="dim")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("pod", "state", "ready", "age"):
        table.add_column(column)
    for pod in sorted(pods, key=lambda p: str(p["metadata"]["name"])):
        containers = pod.get("status", {}).get("containerStatuses", [])
        ready = f"{sum(bool(c.get('ready')) for c in containers)}/{len(pod['spec']['containers'])}"
        table.add_row(
            _text(pod["metadata"]["name"]),
            _text(pod_state(pod)),
            ready,
            age(pod["metadata"].get("creationTimestamp"), now) or "–",
        )
    return table


def pod_state(pod: Object) -> str:
    """Return a pod's state in the word that kubectl uses."""
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for container in pod.get("status", {}).get("containerStatuses", []):
        state = container.get("state", {})
        for kind in ("waiting", "terminated"):
            if kind in state and state[kind].get("reason"):
                return str(state[kind]["reason"])
    return str(pod.get("status", {}).get("phase", "Pending"))


def _notes(status: Object, pool: Object | None, now: datetime) -> RenderableType | None:
    judges = judges_trouble(pool)
    warnings = [_silence(status, now), judges and judges.text, *avoided_nodes(pool)]
    lines = [Text(printable(said), style="yellow") for said in warnings if said]
    lines += [Text(printable(trouble.text), style="red") for trouble in troubles(status)]
    if said := progressing(status).message:
        lines.append(Text(printable(said), style="dim"))
    return Group(*lines) if lines else None


def _silence(status: Object, now: datetime) -> str | None:
    """Return a warning if the figures are old, because nothing else in the view shows it."""
    written = (status.get("progress") or {}).get("time")
    if status.get("phase") != "Running" or not written:
        return None
    seconds = (now - datetime.fromisoformat(written)).total_seconds()
    if seconds < SILENT_SECONDS:
        return None
    return (
        f"the trainer's last report was {age(written, now)} ago: if other runs report, this trainer hangs and is "
        "stopped after its stage's stallSeconds; if none does, check the operator and the network between them"
    )


def _text(value: Any) -> Text:
    """Return others' text in a form that neither rich nor the terminal interprets."""
    return Text(printable(str(value)))


def _pair(label: str, value: Any) -> Text:
    return Text.assemble((f"{label} ", "dim"), "–" if value is None else printable(str(value)))


def _ratio(value: Any) -> str | None:
    return None if value is None else f"{float(value):.2f}"


def _short(uri: str | None) -> str:
    return "–" if not uri else "/".join(uri.rstrip("/").rsplit("/", 2)[-2:])
