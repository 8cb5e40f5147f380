"""An evaluation's figures as a table: the same rows for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deepcoder_trainer.evaluation.plan import FROM_FILES
from deepcoder_trainer.evaluation.results import (
    CodeforcesRating,
    Comparison,
    DatasetResult,
    Estimate,
    EvaluationResults,
    Part,
    part_order,
)

HEAD = ("problems", "model", "pass@1", "95 %", "pass@k", "truncated", "tokens", "unjudged")
PARTS = ("problems", "model", "part", "number", "pass@1", "95 %")
PAIRS = ("problems", "models", "difference", "95 %", "p")
_EACH_ALONE = "Each p is for one comparison: among {} of them, the smallest may be small by chance alone."


def summary(result: DatasetResult) -> str:
    """Return one line for a log."""
    if result.pass_at_1 is None:
        return "nothing could be judged"
    p = result.pass_at_1
    rated = f", rating {result.codeforces.rating.mean:.0f}" if result.codeforces else ""
    return (
        f"pass@1 {p.mean:.3f} ({p.low:.3f} to {p.high:.3f}){rated}, {result.truncated_ratio:.1%} truncated, "
        f"{result.problems} problems × {result.samples // max(1, result.problems)}, {result.unjudged} not judged"
    )


def rows(results: EvaluationResults) -> list[tuple[str, ...]]:
    """Return a row for each target and problem set."""
    return [_row(name, target, r) for target, by_set in results.in_order.items() for name, r in by_set.items()]


def parts(results: EvaluationResults) -> list[tuple[str, ...]]:
    """Return rows by difficulty and month."""
    return [
        (name, target, part, str(p.problems), _mean(p.pass_at_1), _ends(p.pass_at_1))
        for target, by_set in results.in_order.items()
        for name, r in by_set.items()
        for part, p in _all_parts(r)
    ]


def pairs(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Return rows of paired differences."""
    return [
        (
            c.dataset,
            f"{c.before} → {c.after}",
            f"{c.difference.mean:+.3f}",
            f"{c.difference.low:+.3f} to {c.difference.high:+.3f}",
            "" if c.p_value is None else f"{c.p_value:.3g}",
        )
        for c in comparisons
    ]


def notes(results: EvaluationResults) -> list[str]:
    """Return the notes that must accompany the figures, and what was left out."""
    found = []
    for target, by_set in results.in_order.items():
        for name, r in by_set.items():
            if r.codeforces is not None:
                found.append(f"{name}, {target}: {_rated(r.codeforces)}")
            found += [f"{name}, {target}: {note}" for note in _not_judged(r)]
            found += [f"{name}: {note}" for note in r.notes]
    found += [
        f"{name}: {count} problems left out, their prompts are too long" for name, count in results.left_out.items()
    ]
    return list(dict.fromkeys(found))


def render(results: EvaluationResults) -> RenderableType:
    """Return the whole table for a terminal."""
    shown: list[RenderableType] = [_table(HEAD, rows(results))]
    shown += [Text(note, style="italic") for note in notes(results)]
    if found := parts(results):
        shown.append(_table(PARTS, found))
    if found := pairs(results.comparisons):
        shown.append(_table(PAIRS, found))
        if len(found) > 1:
            shown.append(Text(_EACH_ALONE.format(len(found)), style="italic"))
    return Group(*shown)


def markdown(results: EvaluationResults) -> str:
    """Return the whole table as a Markdown page."""
    inputs = results.inputs
    lines = [
        f"# Evaluation {results.key[:12]}",
        "",
        f"{inputs.get('samples_per_problem')} responses per problem {_sampled(inputs)}, "
        f"judge {inputs.get('judge') or 'unknown'}.",
        "",
        *table_lines(HEAD, rows(results)),
        "",
        *[f"- {note}" for note in notes(results)],
    ]
    if found := parts(results):
        lines += ["", *table_lines(PARTS, found)]
    if found := pairs(results.comparisons):
        lines += ["", *table_lines(PAIRS, found)]
        if len(found) > 1:
            lines += ["", _EACH_ALONE.format(len(found))]
    lines += ["", "Intervals are 95 % over problems, by bootstrap (Wilson's interval if all problems came out alike)."]
    return "\n".join(lines) + "\n"


def table_lines(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return ["| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *body)]


def _sampled(inputs: Mapping[str, Any]) -> str:
    if inputs.get("sampler") == FROM_FILES:
        return "from files, which do not say how they were sampled"
    return (
        f"of at most {inputs.get('context_tokens')} tokens, temperature {inputs.get('temperature')}, "
        f"top-p {inputs.get('top_p')}, seed {inputs.get('seed')}; {inputs.get('sampler')}"
    )


def _row(name: str, target: str, r: DatasetResult) -> tuple[str, ...]:
    at_k = "  ".join(f"@{k} {e.mean:.3f}" for k, e in sorted(r.pass_at_k.items(), key=lambda i: int(i[0])) if k != "1")
    return (
        f"{name}: {r.problems} × {r.samples // max(1, r.problems)}",
        target,
        _mean(r.pass_at_1) or "not judged",
        _ends(r.pass_at_1),
        at_k,
        f"{r.truncated_ratio:.1%}",
        "" if r.response_tokens_mean is None else f"{r.response_tokens_mean:.1f}",
        str(r.unjudged),
    )


def _rated(found: CodeforcesRating) -> str:
    rating, unasked = found.rating, sum(found.unasked.values())
    over = f"{len(found.by_contest)} contests"
    if rating.low is None or rating.high is None:
        interval = f"over {over}, which give no interval"
    else:
        interval = f"{rating.low:.0f} to {rating.high:.0f} over {over}"
    return (
        f"Codeforces rating {rating.mean:.0f} ({interval})"
        + (f", above {found.percentile:.1f} % of users" if found.percentile is not None else "")
        + (f"; {len(found.left_out)} contests left out" if found.left_out else "")
        + (f"; {unasked} problems of these contests were not asked and count as unsolved" if unasked else "")
    )


def _not_judged(r: DatasetResult) -> list[str]:
    """Return a note on how unjudged responses affect the figures."""
    if r.pass_at_1 is None or not r.unjudged:
        return []
    found, each = [], r.samples // max(1, r.problems)
    if r.pass_at_1.over is not None and r.pass_at_1.over < r.problems:
        found.append(f"all figures are over {r.pass_at_1.over} of {r.problems} problems: of the others none was judged")
    most = max((int(k) for k in r.pass_at_k), default=0)
    if most < each:
        found.append(f"pass@k goes to {most} of {each}: of some problems no more responses could be judged")
    return found


def _all_parts(r: DatasetResult) -> list[tuple[str, Part]]:
    return [(name, by[name]) for by in (r.by_difficulty, r.by_month) for name in sorted(by, key=part_order)]


def _mean(e: Estimate | None) -> str:
    return f"{e.mean:.3f}" if e else ""


def _ends(e: Estimate | None) -> str:
    return f"{e.low:.3f} to {e.high:.3f}" if e else ""


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, header_style="bold")
    for name in head:
        table.add_column(name, justify="left" if name in ("problems", "model", "models", "part") else "right")
    for row in body:
        table.add_row(*row)
    return table
