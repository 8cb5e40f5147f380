"""Finds the models that an Evaluate stage measures: the starting model and the exports of earlier stages.

A stage's model is its newest export that counts (`lineage.candidates`: it has a manifest, and no later attempt had
begun by then). Its files are checked against the manifest when they are downloaded. The starting model has no manifest,
so its files are hashed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from deepcoder_contracts.manifest import Manifest, ManifestKind, ParentRef
from deepcoder_contracts.stage import ModelSource, StageConfig
from deepcoder_trainer.checkpoint.errors import ConfigMismatch, ObjectMissing
from deepcoder_trainer.checkpoint.listing import read_listing
from deepcoder_trainer.checkpoint.modelfiles import model_digest
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.errors import BadConfig

BASE = "Base"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """A model to measure."""

    name: str
    digest: str
    directory: Path
    ref: ParentRef | None = None
    """The export; None for the starting model."""
    manifest: Manifest | None = None


def resolve_targets(config: StageConfig, store: ObjectStore, sources: Sources) -> list[Target]:
    """Return the stage's targets, with their files downloaded and checked. Raises BadConfig if one does not exist."""
    assert config.stage.evaluate is not None, "the contract sees to it"
    names = config.stage.evaluate.targets or [_newest(config, store)]
    return [_base(config, sources) if name == BASE else _exported(name, config, store, sources) for name in names]


def newest_export(stage: str, store: ObjectStore) -> str | None:
    """Return the folder of a stage's newest export that counts, or None."""
    exports = read_listing(store.list(f"{stage}/")).exports()
    return exports[0].path if exports else None


def _newest(config: StageConfig, store: ObjectStore) -> str:
    """Return the newest earlier stage that exported a model; without one, the run's starting model."""
    for stage in reversed(config.earlier_stages):
        if newest_export(stage, store) is not None:
            return stage
    if config.parent is not None:
        raise BadConfig(
            "stage.evaluate.targets is empty and no earlier stage of this run exported a model: name Base, and set "
            f"model.uri to the export next to {config.parent.uri}",
            field="stage.evaluate.targets",
        )
    return BASE


def _base(config: StageConfig, sources: Sources) -> Target:
    directory = sources.model(config.model)
    return Target(BASE, model_digest(directory), directory)


def _exported(name: str, config: StageConfig, store: ObjectStore, sources: Sources) -> Target:
    folder = newest_export(name, store)
    if folder is None:
        raise BadConfig(
            f"stage.evaluate.targets names {name}, which has exported no model in {store.uri}: name a Train stage "
            "that is done, or Base",
            field="stage.evaluate.targets",
        )
    # Read from its own root, so that the digest is that of the manifest against which the download checks the files.
    manifest, digest = read_manifest(open_storage(f"{store.uri}/{folder}", sources.endpoint, sources.region), "")
    if manifest.kind is not ManifestKind.EXPORT or manifest.run.uid != config.run.uid:
        raise ConfigMismatch(f"{store.uri}/{folder} is not an export of this run: choose another storage.uri")
    try:
        directory = sources.model(ModelSource(uri=f"{store.uri}/{folder}"))
    except ObjectMissing as error:
        raise BadConfig(f"{store.uri}/{folder} has lost files: {error}", field="stage.evaluate.targets") from error
    return Target(name, digest, directory, ParentRef(uri=f"{store.uri}/{folder}", digest=digest), manifest)
