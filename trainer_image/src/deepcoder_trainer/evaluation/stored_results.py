"""Reads a stored evaluation. Results count only if the files are as the manifest says.

A file that was edited, truncated or mixed with another process's is recognised by its size or SHA-256 and refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from deepcoder_contracts.layout import MANIFEST, RESULTS, evaluation_file
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, ObjectMissing
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.storage import ObjectStore, join_key
from deepcoder_trainer.checkpoint.transfer import download_files
from deepcoder_trainer.checkpoint.verify import check_file
from deepcoder_trainer.evaluation.plan import samples_path
from deepcoder_trainer.evaluation.results import EvaluationResults
from deepcoder_trainer.samples import read_samples


def read_evaluation(store: ObjectStore, folder: str) -> tuple[Manifest, EvaluationResults]:
    """Return manifest and results of the committed evaluation in a folder.

    Raises ObjectMissing if there is none, and CheckpointDamaged if its results are not as the manifest says.
    """
    manifest, _ = read_manifest(store, folder)
    if manifest.kind is not ManifestKind.EVALUATION:
        where = join_key(store.uri, folder, MANIFEST)
        raise CheckpointDamaged(f"{where} is of kind {manifest.kind.value}, not Evaluation")
    data = _results_bytes(store, folder, manifest)
    try:
        return manifest, EvaluationResults.from_json(data)
    except ValidationError as error:
        raise CheckpointDamaged(f"{join_key(store.uri, folder, RESULTS)} cannot be read: {error}") from error


def read_rows(store: ObjectStore, folder: str, manifest: Manifest, target: str, dataset: str) -> list[dict[str, Any]]:
    """Return a target's samples of a problem set. Raises CheckpointDamaged if they are not the committed ones."""
    entry = _entry(store, folder, manifest, samples_path(target, dataset))
    with TemporaryDirectory(prefix="deepcoder-samples-") as scratch:
        try:
            download_files(store, folder, Path(scratch), [entry])
        except CheckpointDamaged as error:
            raise CheckpointDamaged(f"{join_key(store.uri, folder)}: {error}") from error
        return read_samples(Path(scratch) / entry.path)


def check_stored(store: ObjectStore, folder: str, manifest: Manifest) -> None:
    """Raise CheckpointDamaged unless the results are as committed and the samples files have the right size."""
    _results_bytes(store, folder, manifest)
    for entry in manifest.files:
        there = entry.model_copy(update={"path": join_key(folder, entry.path)})
        if problems := check_file(store, there, deep=False):
            raise CheckpointDamaged("; ".join(problems))


def _results_bytes(store: ObjectStore, folder: str, manifest: Manifest) -> bytes:
    entry = _entry(store, folder, manifest, RESULTS)
    key = join_key(folder, entry.path)
    try:
        data = store.get_bytes(key)
    except ObjectMissing as error:
        raise CheckpointDamaged(f"{join_key(store.uri, key)} is missing") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CheckpointDamaged(f"{join_key(store.uri, key)} is not what {MANIFEST} beside it says: it was changed")
    return data


def _entry(store: ObjectStore, folder: str, manifest: Manifest, name: str) -> FileEntry:
    files = {entry.path: entry for entry in manifest.files}
    path = evaluation_file(files, name)
    if path is None:
        raise CheckpointDamaged(f"{join_key(store.uri, folder, MANIFEST)} lists no {name}")
    return files[path]
