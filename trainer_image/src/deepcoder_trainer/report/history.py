"""A run's history as values, read from storage: steps of all attempts, evaluations, and paired answers.

This module writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepcoder_contracts.layout import evaluation_dir
from deepcoder_contracts.manifest import Manifest
from deepcoder_contracts.steps import StepRecord, merge_steps
from deepcoder_trainer.checkpoint.errors import ObjectMissing
from deepcoder_trainer.checkpoint.listing import read_listing
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.evaluation.results import EvaluationResults, Scores, scores
from deepcoder_trainer.evaluation.stored_results import read_evaluation, read_rows

_METRICS = re.compile(r"^(?P<stage>[^/]+)/attempts/(?P<ordinal>\d{3,})/metrics\.jsonl$")
_EVALUATION = re.compile(r"^eval/(?P<key>[0-9a-f]{64})/MANIFEST\.json$")


@dataclass(frozen=True)
class StoredEvaluation:
    """A committed evaluation."""

    manifest: Manifest
    results: EvaluationResults


@dataclass(frozen=True)
class BeforeAfter:
    """One problem, answered by two targets under the same seed."""

    prompt: str
    before: str
    before_response: str
    before_verdict: str
    after: str
    after_response: str
    after_verdict: str


@dataclass(frozen=True)
class RunHistory:
    """Everything that a report needs of a run."""

    steps: tuple[StepRecord, ...]
    """All steps, in order of stages and steps."""
    evaluations: tuple[StoredEvaluation, ...]
    """Evaluations of Evaluate stages, oldest first. Evaluations within training are in the steps' metrics."""
    newest: str | None
    """Folder of the newest manifest that ends a chain: that of an evaluation or, without one, of an export."""

    @property
    def stages(self) -> list[str]:
        """Names of the stages that trained, in order."""
        return list(dict.fromkeys(s.stage for s in self.steps))


def read_history(store: ObjectStore) -> RunHistory:
    """Read a run. Raises ObjectMissing if there is no run below the store's root."""
    objects = store.list("")
    keys = [o.key for o in objects]
    lines = [
        (int(match["ordinal"]), store.get_bytes(key).decode().splitlines())
        for key in keys
        if (match := _METRICS.match(key))
    ]
    evaluations = sorted(
        (_evaluation(store, match["key"]) for key in keys if (match := _EVALUATION.match(key))),
        key=lambda e: e.manifest.created_at,
    )
    stages = sorted({key.split("/")[0] for key in keys})
    listings = [read_listing(o for o in objects if o.key.startswith(f"{stage}/")) for stage in stages]
    exports = [(read_manifest(store, e.path)[0], e.path) for listing in listings for e in listing.exports()[:1]]
    if not lines and not evaluations:
        raise ObjectMissing(f"{store.uri} holds no run (no metrics, no evaluation): name the folder that has RUN.json")
    with_chain = [e for e in evaluations if e.manifest.parent is not None]
    newest = None
    if with_chain:
        newest = evaluation_dir(with_chain[-1].results.key)
    elif exports:
        newest = max(exports, key=lambda e: (e[0].stage_index, e[0].step))[1]
    return RunHistory(tuple(merge_steps(lines)), tuple(e for e in evaluations if _of_a_stage(e)), newest)


def before_and_after(store: ObjectStore, evaluation: StoredEvaluation) -> BeforeAfter | None:
    """Return a problem that the first target of an evaluation failed and the last one solved, under the same seed.

    Among several, return one with a prompt of median length; without any, None.
    """
    targets = list(evaluation.results.in_order)
    if len(targets) < 2:
        return None
    first, last = targets[0], targets[-1]
    for dataset in evaluation.results.targets[first]:
        before, after = (_rows(store, evaluation, t, dataset) for t in (first, last))
        pairs = [(b, a) for b, a in zip(before, after, strict=False) if _right(b) is False and _right(a)]
        if pairs:
            pairs.sort(key=lambda p: (len(p[0]["prompt"]), p[0]["group_id"]))
            b, a = pairs[len(pairs) // 2]
            return BeforeAfter(
                prompt=b["prompt"],
                before=first,
                before_response=b["response"],
                before_verdict=b["verdict"],
                after=last,
                after_response=a["response"],
                after_verdict=a["verdict"],
            )
    return None


def _right(row: Mapping[str, Any]) -> bool | None:
    """Whether an answer counts as correct; None if it was not judged."""
    return None if row["reward"] is None else bool(row["reward"] > 0)


def target_scores(store: ObjectStore, evaluation: StoredEvaluation, target: str, dataset: str) -> Scores:
    """Return the scores of a target per problem, from its stored samples."""
    return scores(_rows(store, evaluation, target, dataset))


def _of_a_stage(evaluation: StoredEvaluation) -> bool:
    return evaluation.manifest.parent is not None or len(evaluation.results.targets) > 1


def _evaluation(store: ObjectStore, key: str) -> StoredEvaluation:
    return StoredEvaluation(*read_evaluation(store, evaluation_dir(key)))


def _rows(store: ObjectStore, evaluation: StoredEvaluation, target: str, dataset: str) -> list[dict[str, Any]]:
    return read_rows(store, evaluation_dir(evaluation.results.key), evaluation.manifest, target, dataset)
