"""Reports what curation did: report.json for programs, report.md for people, and plots.

The page says what was read and what each filter removed from each source, with examples and reasons, so that a filter
that removes too much is noticed without reading the data. Plots need matplotlib; without it, the page says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepcoder_trainer.curation import filters
from deepcoder_trainer.curation.prepare import Candidate
from deepcoder_trainer.curation.tally import Tally

REPORT, PAGE, DROPPED = "report.json", "report.md", "dropped.jsonl"
_COUNTS, _SHAPES = "counts.png", "shapes.png"
PICTURES = (_COUNTS, _SHAPES)


@dataclass(frozen=True)
class Facts:
    """The contents of the report besides counts."""

    settings: Mapping[str, Any]
    inputs: Sequence[Mapping[str, Any]]
    """name, uri, sha256, layouts of each input."""
    evaluations: Sequence[Mapping[str, Any]]
    """name, uri, sha256 of each evaluation set."""
    tokenizer: str | None
    pass_rates: str | None
    sampled: Mapping[str, Any] | None
    """Model and settings of sampled pass rates, with numbers of responses (`Rates.facts`); None: no sampling."""
    files: Mapping[str, str]
    """Output file to SHA-256."""
    parquet_left_out: int
    judging: Mapping[str, int]
    seconds: Mapping[str, float]
    without_pass_rate: int | None


def write_report(folder: Path, tally: Tally, kept: Sequence[Candidate], facts: Facts) -> dict[str, Any]:
    """Write the report, its page, the list of dropped problems, and plots. Return the content of report.json."""
    values = report_values(tally, kept, facts)
    (folder / REPORT).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    with (folder / DROPPED).open("w") as file:
        file.writelines(json.dumps(asdict(d), ensure_ascii=False) + "\n" for d in tally.dropped)
    pictures = _draw(folder, tally, kept)
    (folder / PAGE).write_text(page(values, pictures))
    return values


def report_values(tally: Tally, kept: Sequence[Candidate], facts: Facts) -> dict[str, Any]:
    """Return the content of report.json."""
    return {
        "read": dict(tally.read),
        "kept": dict(tally.kept),
        "kept_unverified": dict(tally.unverified),
        "dropped": {source: _in_order(tally.by_filter[source]) for source in tally.sources},
        "examples": {name: [asdict(d) for d in tally.examples[name]] for name in filters.ALL if name in tally.examples},
        "tests": _spread([c.tests for c in kept]),
        "prompt_tokens": _spread([c.tokens for c in kept if c.tokens is not None]),
        "pass_rates_kept": _spread([c.pass_rate for c in kept if c.pass_rate is not None]),
        **asdict(facts),
    }


def page(values: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """Return the text of report.md."""
    sources = list(values["read"])
    used = [name for name in filters.ALL if any(values["dropped"][s].get(name) for s in sources)]
    total, kept = sum(values["read"].values()), sum(values["kept"].values())
    lines = ["# Curation", "", f"{kept:,} of {total:,} problems are kept.", ""]
    lines += _table(
        ["source", "read", *used, "kept", "of these unverified"],
        [
            [
                source,
                values["read"][source],
                *(values["dropped"][source].get(name, 0) for name in used),
                values["kept"].get(source, 0),
                values["kept_unverified"].get(source, 0),
            ]
            for source in sources
        ],
    )
    lines += [
        "A problem counts at the first filter that drops it. Unverified: kept, and no official solution was run.",
        "",
    ]
    lines += [f"![{Path(p).stem}]({p})" for p in pictures] or ["No pictures: matplotlib is not installed."]
    lines += ["", "## Filters", ""]
    lines += [f"- `{name}`: {text}." for name, text in filters.ALL.items()]
    lines += ["", *_notes(values), "", "## What was dropped, for example", ""]
    lines += [] if values["examples"] else ["Nothing.", ""]
    for name, examples in values["examples"].items():
        lines += [f"### {name}", ""]
        for e in examples:
            lines += [f"- `{_safe(e['id'] or e['place'])}` ({_safe(e['place'])}): {_safe(e['reason'])}"]
            lines += [f"  > {_safe(e['excerpt'])}"] if e["excerpt"] else []
        lines += [""]
    lines += ["## From what", ""]
    lines += _table(
        ["input", "where", "layout", "sha256"],
        [[i["name"], i["uri"], ", ".join(i["layouts"]), f"`{i['sha256'][:16]}…`"] for i in values["inputs"]],
    )
    if values["evaluations"]:
        lines += ["Checked against:", ""]
        lines += _table(
            ["set", "where", "sha256"],
            [[e["name"], e["uri"], f"`{e['sha256'][:16]}…`"] for e in values["evaluations"]],
        )
    lines += ["Settings:", "", "```json", json.dumps(values["settings"], indent=2), "```", ""]
    return "\n".join(lines)


def _notes(values: Mapping[str, Any]) -> list[str]:
    notes = []
    if values["tokenizer"] is None:
        notes.append(f"`{filters.LONG_PROMPT}` was not applied: no tokenizer was given.")
    if not values["evaluations"]:
        notes.append(f"`{filters.CONTAMINATED}` was not applied: no evaluation set was given.")
    if (sampled := values["sampled"]) is not None:
        notes.append(
            f"Pass rates of {_safe(sampled['model'])}: {sampled['samples']} responses per problem of at most "
            f"{sampled['max_tokens']:,} tokens, {sampled['sampled']:,} sampled and judged now, {sampled['known']:,} "
            "known from the journal. It was asked last: about problems that all other filters leave."
        )
    if values["without_pass_rate"] is None:
        notes.append(f"`{filters.PASS_RATE}` was not applied: neither pass rates nor a model were given.")
    elif values["without_pass_rate"]:
        notes.append(f"{values['without_pass_rate']} problems have no pass rate and were not filtered by it.")
    if values["parquet_left_out"]:
        notes.append(
            f"{values['parquet_left_out']} scripts are in the JSON Lines alone: the published schema has none."
        )
    judging = values["judging"]
    notes.append(f"Programs judged: {judging['judged']:,} now, {judging['known']:,} known from the journal.")
    return [f"- {note}" for note in notes]


def _in_order(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: counts[name] for name in filters.ALL if counts.get(name)}


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    at = {f"p{p}": ordered[min(len(ordered) - 1, p * len(ordered) // 100)] for p in (10, 50, 90)}
    return {"min": ordered[0], **at, "max": ordered[-1], "mean": round(sum(ordered) / len(ordered), 2)}


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_safe(v) for v in row)} |" for row in rows]
    return [*lines, ""]


def _safe(value: Any) -> str:
    """Escape a value for a line of Markdown: text of a dataset must not change the page's layout."""
    if isinstance(value, int):
        return f"{value:,}"
    return "".join(f"\\{c}" if c in "|<>[]!*#" else c for c in str(value).replace("\n", " ").replace("`", "'"))


def _draw(folder: Path, tally: Tally, kept: Sequence[Candidate]) -> list[str]:
    try:
        from deepcoder_trainer.curation.plots import draw_counts, draw_shapes
    except ModuleNotFoundError:
        return []
    draw_counts(folder / _COUNTS, tally)
    draw_shapes(folder / _SHAPES, kept)
    return list(PICTURES)
