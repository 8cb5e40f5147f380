"""Turns all samples of an evaluation into committed results: files first, then the manifest, which is the commit.

`eval/<key>/` has `results.json`, `results.md` (a table), `results.png` (if matplotlib is installed), a samples file for
each target and problem set, and `MANIFEST.json` with the SHA-256 of all of them. On a file system, one process at a
time measures a key. On S3 two processes may do so, and sampling is not bit-identical. So each puts its files into its
own folder, the manifest says whose files count, and the second process uses those. A folder with a manifest is never
written to again.

A manifest names one stage, and the operator finds a stage's results by that name. A stage whose inputs another stage of
the run has measured therefore commits that stage's samples once more, under a key of its own.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from deepcoder_contracts.layout import MANIFEST, RESULTS, evaluation_dir
from deepcoder_contracts.manifest import Manifest, ManifestKind
from deepcoder_trainer.checkpoint.code import versions
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, ObjectExists, ObjectMissing, StorageError
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.transfer import put_new, upload_files
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.context import EvaluationContext
from deepcoder_trainer.evaluation.plan import EvaluationPlan, parts_path, samples_path
from deepcoder_trainer.evaluation.plots import draw
from deepcoder_trainer.evaluation.problemsets import ProblemSet
from deepcoder_trainer.evaluation.results import (
    DatasetResult,
    EvaluationResults,
    codeforces_rating,
    compare,
    dataset_result,
    metrics,
    scores,
)
from deepcoder_trainer.evaluation.samples import write_rows
from deepcoder_trainer.evaluation.stored_results import check_stored, read_rows
from deepcoder_trainer.evaluation.table import markdown, summary
from deepcoder_trainer.evaluation.targets import Target

TABLE = "results.md"
PICTURE = "results.png"

Rows = Mapping[str, Sequence[dict[str, Any]]]
"""Problem set to a target's samples."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """The results of an evaluation."""

    key: str
    metrics: Mapping[str, float]
    stage: str
    """The stage that the manifest names."""
    found: datetime | None = None
    """When it was measured, if these are earlier results and nothing was measured now."""


def committed(context: EvaluationContext, key: str) -> Evaluated | None:
    """Return the committed results of this key, or None. Raises BadConfig if they were changed since."""
    folder = evaluation_dir(key)
    try:
        with _undamaged(context, folder):
            manifest, _ = read_manifest(context.store, folder)
            check_stored(context.store, folder, manifest)
    except ObjectMissing:
        return None
    return Evaluated(key, manifest.metrics, manifest.stage, manifest.created_at)


def committed_rows(context: EvaluationContext, plan: EvaluationPlan) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the committed samples of every target by problem set. Raises BadConfig if they were changed since."""
    folder = evaluation_dir(plan.key)
    with _undamaged(context, folder):
        manifest, _ = read_manifest(context.store, folder)
        return {
            target.name: {
                dataset.name: read_rows(context.store, folder, manifest, target.name, dataset.name)
                for dataset in plan.datasets
            }
            for target in plan.targets
        }


@contextmanager
def _undamaged(context: EvaluationContext, folder: str) -> Iterator[None]:
    try:
        yield
    except CheckpointDamaged as error:
        raise BadConfig(
            f"{context.store.uri}/{folder} was measured from these inputs and has been damaged since ({error}): remove "
            "that folder to measure again (by hand: --again measures into another folder)",
            field="storage.uri",
        ) from error


def target_results(rows: Rows, sets: Sequence[ProblemSet]) -> dict[str, DatasetResult]:
    """Compute the figures of one target."""
    results = {}
    for each in sets:
        found = rows[each.name]
        rating = codeforces_rating(found, each.contests, each.all_ratings) if each.is_rated else None
        results[each.name] = dataset_result(found, rating, each.benchmark.notes)
    return results


def evaluation_results(plan: EvaluationPlan, sets: Sequence[ProblemSet], rows: Mapping[str, Rows]) -> EvaluationResults:
    """Compute the figures of all targets, and of all pairs of targets."""
    names = list(rows)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    compared = [
        compare(s.name, (a, scores(rows[a][s.name])), (b, scores(rows[b][s.name]))) for s in sets for a, b in pairs
    ]
    return EvaluationResults(
        key=plan.key,
        inputs=plan.inputs(),
        targets={target: target_results(by_set, sets) for target, by_set in rows.items()},
        comparisons=[c for c in compared if c is not None],
        left_out={s.name: len(s.left_out) for s in sets if s.left_out},
    )


def commit(
    context: EvaluationContext,
    plan: EvaluationPlan,
    sets: Sequence[ProblemSet],
    results: EvaluationResults,
    rows: Mapping[str, Rows],
    measured: Target,
    step: int | None = None,
) -> Evaluated:
    """Put results and samples, then the manifest. `measured` is the target that becomes the manifest's parent."""
    prefix, config, source = evaluation_dir(plan.key), context.config, measured.manifest
    if (before := committed(context, plan.key)) is not None:
        log.info("another attempt has committed evaluation %s first", plan.key[:12])
        return before
    root, writer = context.workdir / plan.key, _writer(context.store)
    folder = root / writer
    files = []
    for target, by_set in rows.items():
        for each in sets:
            files.append(folder / samples_path(target, each.name))
            write_rows(files[-1], by_set[each.name], each.left_out)
    (folder / RESULTS).write_bytes(results.to_json())
    (folder / TABLE).write_text(markdown(results))
    files += [folder / RESULTS, folder / TABLE]
    try:
        draw(results, folder / PICTURE)
        files.append(folder / PICTURE)
    except ModuleNotFoundError:
        log.info("%s is left out: it needs matplotlib (pip install 'deepcoder-trainer[plots]')", PICTURE)
    figures = metrics(results.targets)
    manifest = Manifest(
        kind=ManifestKind.EVALUATION,
        run=config.run,
        stage=config.stage.name,
        stage_index=config.stage.index,
        ordinal=config.ordinal,
        step=step if step is not None else (source.step if source else 0),
        total_steps=source.total_steps if source else 0,
        parent=measured.ref,
        model=config.model.uri,
        config_digest=config.provenance.config_digest,
        code_digest=plan.code_digest,
        versions=versions(),
        image=config.provenance.image,
        image_id=context.runtime_info.image_id,
        accelerator=context.runtime_info.accelerator,
        seed=plan.seed,
        world_size=0,
        metrics=figures,
        evaluation_key=plan.key,
        created_at=datetime.now(UTC),
        files=upload_files(context.store, prefix, root, files),
    )
    try:
        put_new(context.store, f"{prefix}/{MANIFEST}", manifest.to_json())
    except ObjectExists:
        log.info("another attempt has committed evaluation %s first: its results count", plan.key[:12])
        if writer:
            _clear(context.store, f"{prefix}/{writer}/")
        if (first := committed(context, plan.key)) is None:
            raise
        return first
    _clear(context.store, f"{prefix}/{parts_path()}/")
    for target, measured_sets in results.targets.items():
        for name, result in measured_sets.items():
            log.info("%s on %s: %s", target, name, summary(result))
    return Evaluated(plan.key, figures, config.stage.name)


def _writer(store: ObjectStore) -> str:
    """Return this process's own folder below the evaluation's; on a file system none is needed."""
    return "" if store.uri.startswith("file://") else uuid.uuid4().hex[:12]


def _clear(store: ObjectStore, prefix: str) -> None:
    try:
        store.delete_prefix(prefix)
    except StorageError as error:
        log.warning("%s is left behind: %s", prefix, error)
