"""`deepcoder-trainer compare-evals A B`: compares two evaluations, and says whether a difference may be chance.

A and B are folders `eval/<key>` (paths, file:// or s3://), or output folders with a single evaluation. Problems are
paired by name. The difference of pass@1 has a bootstrap interval over problems, and a p-value from permuting the signs
of the problems' differences, which is McNemar's exact test if each problem was answered once. The p-value is exact only
if both evaluations have the same number of samples per problem, because a mean of one sample and a mean of many do not
have the same spread; otherwise the report says that it is not exact. Anything else that differs between the two
(length, settings, code) is listed above the figures, because the figures compare the models only if nothing else
differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from rich.console import Console

from deepcoder_contracts.base import VersionedContract
from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.manifest import Manifest
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, StorageError
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.results import Comparison, Estimate, EvaluationResults, Scores, compare, scores
from deepcoder_trainer.evaluation.stats import problem_means
from deepcoder_trainer.evaluation.stored_results import read_evaluation, read_rows
from deepcoder_trainer.evaluation.table import table_lines

HEAD = ("problems", "A", "B", "B - A", "95 %", "p", "only A", "only B")
OUTPUT = "comparison"


class Pair(VersionedContract):
    """One problem set, measured twice."""

    problems: int = Field(ge=0)
    """Problems in both evaluations."""

    alone: dict[str, int] = {}
    """Problems in only A, or only B."""

    a: Estimate | None = None
    """pass@1 of A, on all of its problems."""

    b: Estimate | None = None
    """pass@1 of B, on all of its problems."""

    comparison: Comparison | None = None
    """Paired comparison over the common problems; None if no problem was judged in both."""

    better: dict[str, int]
    """Number of problems that A solved more often than B, and B more often than A."""

    samples: dict[str, int] = {}
    """Samples per problem of A and of B."""


class Compared(VersionedContract):
    """The content of comparison.json."""

    a: str
    """Key and target of the first."""

    b: str
    """Key and target of the second."""

    differs: dict[str, list[Any]]
    """Input to its two values, for inputs that differ."""

    sets: dict[str, Pair]
    """Problem set to its comparison."""


@dataclass(frozen=True)
class Side:
    """A stored evaluation."""

    store: ObjectStore
    manifest: Manifest
    results: EvaluationResults
    target: str

    def scores(self, dataset: str) -> Scores:
        """Read the scores from the samples file."""
        return scores(read_rows(self.store, "", self.manifest, self.target, dataset))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("a", metavar="A", help="folder eval/<key>, or a folder that contains a single evaluation")
    parser.add_argument("b", metavar="B", help="the same for the other evaluation")
    parser.add_argument(
        "--targets", nargs=2, metavar=("OF_A", "OF_B"), help="models to compare (default: the last of each evaluation)"
    )
    parser.add_argument("--output", type=Path, help=f"folder for {OUTPUT}.json and {OUTPUT}.md")
    parser.add_argument("--endpoint", help="S3 endpoint URL of a server other than AWS")
    parser.add_argument("--region", help="S3 region")


def main(options: argparse.Namespace) -> int:
    """Compare and print. Returns 0 if there was something to compare."""
    targets: Sequence[str | None] = options.targets or (None, None)
    try:
        sides = [
            open_side(uri, target, options.endpoint, options.region)
            for uri, target in zip((options.a, options.b), targets, strict=True)
        ]
        compared = compare_sides(*sides)
    except (StorageError, CheckpointDamaged) as error:
        sys.stderr.write(f"deepcoder-trainer compare-evals: {error}\n")
        return 1
    page = markdown(compared)
    Console(highlight=False, soft_wrap=True).print(page)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"{OUTPUT}.json").write_bytes(compared.to_json())
        (options.output / f"{OUTPUT}.md").write_text(page)
    return 0


def open_side(uri: str, target: str | None, endpoint: str | None = None, region: str | None = None) -> Side:
    """Open a committed evaluation. Raises BadConfig if there is none, or more than one."""
    place = uri.rstrip("/") if "://" in uri else f"file://{Path(uri).absolute()}"
    store = open_storage(place, endpoint, region)
    if store.head(MANIFEST) is None:
        keys = sorted({o.key.split("/")[1] for o in store.list("eval/") if o.key.endswith(f"/{MANIFEST}")})
        if len(keys) != 1:
            raise BadConfig(
                f"{uri} has {len(keys)} finished evaluations: name one of them, "
                f"{uri.rstrip('/')}/eval/<key>{': ' + ', '.join(k[:12] + '…' for k in keys[:5]) if keys else ''}"
            )
        store = open_storage(f"{place}/eval/{keys[0]}", endpoint, region)
    manifest, results = read_evaluation(store, "")
    names = list(results.in_order)
    if target is not None and target not in names:
        raise BadConfig(f"--targets {target}: {uri} has {', '.join(names)}", field="--targets")
    return Side(store, manifest, results, target or names[-1])


def compare_sides(a: Side, b: Side) -> Compared:
    """Compare every problem set that both have. Raises BadConfig if there is none."""
    mine, theirs = a.results.targets[a.target], b.results.targets[b.target]
    common = [name for name in mine if name in theirs]
    if not common:
        raise BadConfig(f"A has {', '.join(mine)} and B has {', '.join(theirs)}: measure both on the same problems")
    return Compared(
        a=f"{a.results.key[:12]} {a.target}",
        b=f"{b.results.key[:12]} {b.target}",
        differs=_differing(a, b),
        sets={
            name: pair_of(name, (a.scores(name), b.scores(name)), (mine[name].pass_at_1, theirs[name].pass_at_1))
            for name in sorted(common)
        },
    )


def pair_of(name: str, pair: tuple[Scores, Scores], whole: tuple[Estimate | None, Estimate | None]) -> Pair:
    """Compare two results on one set, paired by the problems' names."""
    ids = [p for p in pair[0].problem_ids if p in set(pair[1].problem_ids)]
    first, second = (_chosen(each, ids) for each in pair)
    difference = problem_means(second.solved) - problem_means(first.solved)
    return Pair(
        problems=len(ids),
        alone={side: len(each.problem_ids) - len(ids) for side, each in zip(("A", "B"), pair, strict=True)},
        a=whole[0],
        b=whole[1],
        comparison=compare(name, ("A", first), ("B", second)) if ids else None,
        better={"A": int((difference < 0).sum()), "B": int((difference > 0).sum())},
        samples={side: each.solved.shape[1] for side, each in zip(("A", "B"), pair, strict=True)},
    )


def markdown(compared: Compared) -> str:
    """Return the comparison as Markdown, which is also printed on a terminal."""
    lines = [f"A: {compared.a}", f"B: {compared.b}", ""]
    lines += [f"{name}: {first} | {second}" for name, (first, second) in compared.differs.items()]
    lines += ["", *table_lines(HEAD, [_row(name, pair) for name, pair in compared.sets.items()]), ""]
    for name, pair in compared.sets.items():
        if any(pair.alone.values()):
            lines.append(f"{name}: {pair.alone['A']} problems were asked of A alone, {pair.alone['B']} of B alone.")
        if len(set(pair.samples.values())) > 1:
            lines.append(
                f"{name}: A has {pair.samples['A']} samples per problem and B {pair.samples['B']}, so p is "
                "approximate: measure both with one --n for an exact one."
            )
    if len(compared.sets) > 1:
        lines.append(
            f"Each p is for one set: among {len(compared.sets)} of them, the smallest may be small by chance alone."
        )
    lines.append(
        "B - A is over the problems that both were asked, paired; its interval is the bootstrap's over problems, p "
        "that of permuted signs (one sample a problem: McNemar's exact test). Only A, only B: problems that one solved "
        "more often."
    )
    return "\n".join(lines) + "\n"


def _row(name: str, pair: Pair) -> tuple[str, ...]:
    c = pair.comparison
    return (
        f"{name}: {pair.problems}",
        _value(pair.a),
        _value(pair.b),
        f"{c.difference.mean:+.3f}" if c else "",
        f"{c.difference.low:+.3f} to {c.difference.high:+.3f}" if c else "",
        f"{c.p_value:.3g}" if c and c.p_value is not None else "",
        str(pair.better["A"]),
        str(pair.better["B"]),
    )


def _value(e: Estimate | None) -> str:
    return f"{e.mean:.3f} ({e.low:.3f} to {e.high:.3f})" if e else "not judged"


def _chosen(found: Scores, ids: Sequence[str]) -> Scores:
    places = {problem: place for place, problem in enumerate(found.problem_ids)}
    order = np.asarray([places[p] for p in ids], dtype=np.int64)
    return Scores(tuple(ids), found.solved[order])


def _differing(a: Side, b: Side) -> dict[str, list[Any]]:
    first, second = _flat(a), _flat(b)
    return {
        name: [first.get(name), second.get(name)]
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    }


def _flat(side: Side) -> dict[str, Any]:
    """Return all inputs in one flat map; names of target and problem sets are prefixed."""
    inputs: Mapping[str, Any] = side.results.inputs
    flat = {name: value for name, value in inputs.items() if name not in ("targets", "datasets", "versions")}
    flat |= {f"version of {name}": value for name, value in inputs.get("versions", {}).items()}
    flat["model"] = next(t["digest"] for t in inputs["targets"] if t["name"] == side.target)
    for dataset in inputs["datasets"]:
        flat |= {f"{dataset['name']}.{name}": value for name, value in dataset.items() if name != "name"}
    return flat
