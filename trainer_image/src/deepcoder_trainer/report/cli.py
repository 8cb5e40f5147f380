"""`deepcoder-trainer report --storage URI --output DIR`: reports a run, on the terminal and in files.

DIR gets `curves.png` and `report.json`. Everything comes from storage, so it works anywhere and at any time, also while
the run is going on; whatever is not there yet is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from deepcoder_trainer.checkpoint.cli import describe
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, StorageError
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.verify import Link, walk_chain
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.report.braille import curve
from deepcoder_trainer.report.figures import run_figures
from deepcoder_trainer.report.history import BeforeAfter, RunHistory, StoredEvaluation, before_and_after, read_history
from deepcoder_trainer.report.plots import boundaries, draw, smoothed

_CURVES = (
    ("reward_mean", "reward", "blue", (0.0, 1.0)),
    ("truncated_ratio", "truncated responses", "yellow", (0.0, 1.0)),
    ("response_tokens_mean", "response length, tokens", "green", (0.0, None)),
)
_LINKS_SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--storage", required=True, help="the run's folder: s3://bucket/prefix/… or file:///path")
    parser.add_argument("--output", type=Path, required=True, help="folder for curves.png and report.json")
    parser.add_argument("--endpoint", help="S3 endpoint URL of a server other than AWS")
    parser.add_argument("--region", help="S3 region")
    parser.add_argument("--deep", action="store_true", help="read every file of the lineage and check its SHA-256")


def main(options: argparse.Namespace) -> int:
    """Report the run. Return 0 if there is a run and its lineage has no problem."""
    try:
        store = open_storage(options.storage.rstrip("/"), options.endpoint, options.region)
    except ValueError as error:
        raise BadConfig(f"--storage: {error}", field="--storage") from error
    try:
        history = read_history(store)
        links = _links(store, history, options)
        examples = [e for e in (before_and_after(store, e) for e in reversed(history.evaluations)) if e]
    except (StorageError, CheckpointDamaged) as error:
        sys.stderr.write(f"deepcoder-trainer report: {error}\n")
        return 1
    example = examples[0] if examples else None
    Console(highlight=False).print(render(history, links, example))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "report.json").write_text(json.dumps(document(history, links), indent=2) + "\n")
    if history.steps:
        try:
            draw(history, options.output / "curves.png", store.uri.rsplit("/", 1)[-1])
        except ModuleNotFoundError:
            sys.stderr.write("curves.png is left out: it needs matplotlib (pip install 'deepcoder-trainer[plots]')\n")
    return 1 if any(link.problems for link in links) else 0


def document(history: RunHistory, links: list[Link]) -> dict[str, Any]:
    """Return the content of report.json."""
    figures = run_figures(history.steps)
    return {
        "training": asdict(figures) | {"reward_gain": figures.reward_gain} if figures else None,
        "evaluations": [e.results.model_dump(mode="json", by_alias=True) for e in history.evaluations],
        "lineage": [
            {"uri": link.uri, "digest": link.digest, "pruned": link.pruned, "problems": list(link.problems)}
            for link in links
        ],
    }


def render(history: RunHistory, links: list[Link], example: BeforeAfter | None) -> RenderableType:
    """Return the report for a terminal."""
    parts: list[RenderableType] = []
    if history.steps:
        parts += [Rule("training"), *_curves(history), _stages(history)]
    for evaluation in history.evaluations:
        parts += [Rule("evaluation"), _evaluation(evaluation)]
    if example is not None:
        parts += [Rule("one problem, before and after"), _example(example)]
    if links:
        parts += [Rule("lineage, newest first"), *_lineage(links)]
    return Group(*parts)


def _links(store: ObjectStore, history: RunHistory, options: argparse.Namespace) -> list[Link]:
    if history.newest is None:
        return []
    uri = f"{store.uri}/{history.newest}"
    return list(walk_chain(uri, deep=options.deep, endpoint=options.endpoint, region=options.region))


def _curves(history: RunHistory) -> list[RenderableType]:
    breaks = boundaries(history.steps)
    rendered: list[RenderableType] = []
    for metric, title, colour, (low, high) in _CURVES:
        values = smoothed([s.metrics.get(metric, 0.0) for s in history.steps], breaks)
        top = high if high is not None else max(values) * 1.1
        lines = curve(values, 64, 6, low=low, high=top, boundaries=breaks)
        rendered += [Text(title, style="bold"), Text("\n".join(lines), style=colour)]
    return rendered


def _stages(history: RunHistory) -> RenderableType:
    figures = run_figures(history.steps)
    assert figures is not None, "there are steps"
    table = Table(box=None, header_style="bold")
    for name in ("stage", "steps", "reward", "truncated", "tokens", "s a step"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for s in figures.stages:
        table.add_row(
            s.name,
            str(s.steps),
            f"{s.reward_first:.2f} → {s.reward_last:.2f}",
            f"{s.truncated_first:.0%} → {s.truncated_last:.0%}",
            f"{s.response_tokens_first:.1f} → {s.response_tokens_last:.1f}",
            f"{s.seconds_per_step:.1f}",
        )
    change = f"{figures.reward_first_fifth:.3f} → {figures.reward_last_fifth:.3f}"
    return Group(table, Text(f"reward, first to last fifth of {figures.steps} steps: {change}"))


def _evaluation(evaluation: StoredEvaluation) -> RenderableType:
    results = evaluation.results
    table = Table(box=None, header_style="bold")
    for name in ("problems", "model", "pass@1", "95 %", "truncated", "tokens"):
        table.add_column(name, justify="left" if name in ("problems", "model") else "right")
    for target, by_set in results.in_order.items():
        for dataset, r in by_set.items():
            p = r.pass_at_1
            table.add_row(
                f"{dataset}: {r.problems} × {r.samples // max(1, r.problems)}",
                target,
                f"{p.mean:.3f}" if p else "not judged",
                f"{p.low:.3f} to {p.high:.3f}" if p else "",
                f"{r.truncated_ratio:.1%}",
                f"{r.response_tokens_mean:.1f}" if r.response_tokens_mean is not None else "",
            )
    lines = []
    for c in results.comparisons:
        d = c.difference
        lines.append(f"{c.before} → {c.after}: {d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f}, paired)")
    head = Text(f"stage {evaluation.manifest.stage}, {results.inputs.get('context_tokens', '?')} tokens a response")
    return Group(head, table, Text("\n".join(lines)))


def _example(example: BeforeAfter) -> RenderableType:
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    sides = (
        (example.before, example.before_response, example.before_verdict, "red"),
        (example.after, example.after_response, example.after_verdict, "green"),
    )
    table.add_row(
        *(
            Panel(
                Syntax(text, "markdown", theme="ansi_light", background_color="default", word_wrap=True),
                title=f"{name}: {verdict}",
                border_style=colour,
            )
            for name, text, verdict, colour in sides
        )
    )
    return Group(Text(example.prompt, style="italic"), table)


def _lineage(links: list[Link]) -> list[RenderableType]:
    shown: list[RenderableType] = [Text(describe(link)) for link in links[:_LINKS_SHOWN]]
    if len(links) > _LINKS_SHOWN:
        shown.append(Text(f"… and {len(links) - _LINKS_SHOWN} more"))
    broken = sum(bool(link.problems) for link in links)
    verdict = f"{broken} of {len(links)} links are broken" if broken else f"all {len(links)} links hold"
    shown.append(Text(verdict, style="bold red" if broken else "bold green"))
    return shown
