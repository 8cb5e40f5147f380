"""Finds the checkpoint that an attempt continues from, and downloads it, checked byte by byte.

The order is: the stage's newest complete checkpoint that counts (`lineage.candidates`); then the parent named in the
config; then nothing, which means the starting model. A damaged checkpoint is skipped with a log line that says why, and
the previous one is used.

Some cases need a person's decision and stop the attempt (exit 64): a checkpoint of another run or configuration, or of
other problems or another tokenizer than now (`ConfigMismatch`), which would make the chain wrong; in a deterministic
run, a checkpoint of another number of ranks or threads, which would change the bits; a checkpoint that only a newer
release can read (`NewerSchema`), which an older one must not replace; and a stage without a complete checkpoint
(`NothingWhole`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.layout import MANIFEST, PIN
from deepcoder_contracts.manifest import ComputeThreads, Manifest, ManifestKind, ParentRef, RunIdentity
from deepcoder_contracts.stage import StageConfig, Storage
from deepcoder_trainer.checkpoint.errors import (
    CheckpointDamaged,
    ConfigMismatch,
    NothingWhole,
    ObjectMissing,
    OtherModel,
    StorageError,
    refuse_newer,
)
from deepcoder_trainer.checkpoint.inputs import Inputs, check_inputs
from deepcoder_trainer.checkpoint.listing import read_listing
from deepcoder_trainer.checkpoint.opening import open_run_storage, open_storage
from deepcoder_trainer.checkpoint.state import PipelineState, load_state
from deepcoder_trainer.checkpoint.storage import ObjectStore, join_key
from deepcoder_trainer.checkpoint.transfer import download_files
from deepcoder_trainer.types import Learner

_LEARNER = "learner/"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that was downloaded and verified."""

    manifest: Manifest

    ref: ParentRef
    """URI of its folder and digest of its manifest: the parent of the next checkpoint."""

    state: PipelineState
    """The controller's part of the checkpoint."""

    directory: str
    """Local folder for `Learner.load`, on each rank's machine."""

    own: bool
    """Whether this stage wrote it. Otherwise it is the config's parent, and stage counters start from zero."""


def read_manifest(store: ObjectStore, prefix: str) -> tuple[Manifest, str]:
    """Return a manifest and the digest of its bytes.

    Raises `ObjectMissing`, `CheckpointDamaged` for an unreadable one, and `NewerSchema`.
    """
    data = store.get_bytes(join_key(prefix, MANIFEST))
    return parse_manifest(data, join_key(store.uri, prefix)), sha256_digest(data)


def parse_manifest(data: bytes, folder: str) -> Manifest:
    """Parse the manifest of a folder. Raises `CheckpointDamaged` and `NewerSchema`."""
    try:
        return Manifest.from_json(data)
    except ValidationError as e:
        refuse_newer(join_key(folder, MANIFEST), _schema_version(data), Manifest.CURRENT_VERSION)
        raise CheckpointDamaged(f"{join_key(folder, MANIFEST)} is no manifest: {e}") from e


async def find_resume_point(
    config: StageConfig,
    learner: Learner | None,
    *,
    workdir: Path,
    store: ObjectStore | None = None,
    threads: ComputeThreads | None = None,
    inputs: Inputs | None = None,
) -> ResumePoint | None:
    """Return the checkpoint that this attempt continues from, downloaded and verified; None: start from the model.

    With `learner`, its ranks download their files too, and only `learner.load(point.directory, …)` remains. `threads`
    (deterministic runs) and `inputs` are compared with the checkpoint's; a difference raises `ConfigMismatch`.
    """
    store = store or open_run_storage(config.storage)
    listing = read_listing(await asyncio.to_thread(store.list, f"{config.stage.name}/"))
    damaged: list[str] = []
    for checkpoint in listing.candidates():
        if checkpoint.path not in listing.with_payload:
            damaged.append(f"{checkpoint.path}: its files were removed")
            continue
        try:
            manifest, digest = await asyncio.to_thread(read_manifest, store, checkpoint.path)
            _check_ours(manifest, config, checkpoint.path)
            if inputs is not None:
                check_inputs(manifest, config, inputs, checkpoint.path)
            if threads is not None:
                _check_the_same_bits(manifest, config, threads, checkpoint.path)
            ref = ParentRef(uri=f"{store.uri}/{checkpoint.path}", digest=digest)
            return await _fetch(
                store, config.storage, checkpoint.path, manifest, ref, learner, workdir=workdir, own=True
            )
        except (CheckpointDamaged, ObjectMissing) as e:
            log.error("checkpoint %s is not used: %s; trying the one before it", checkpoint.path, e)
            damaged.append(f"{checkpoint.path}: {e}")
    if damaged:
        named = "; ".join([*damaged[:5], *(["…"] if len(damaged) > 5 else [])])
        raise NothingWhole(
            f"no checkpoint of stage {config.stage.name} below {store.uri} can be used ({named}): restore their files "
            "and run again; or give up the stage's steps, by removing these folders, or by a new run that starts from "
            "an earlier checkpoint (spec.from; by hand: parent)",
            field="storage.uri",
        )
    if config.parent is None:
        return None
    return await _fetch_parent(config, config.parent, learner, workdir, inputs)


def _schema_version(data: bytes) -> object:
    try:
        document = json.loads(data)
    except ValueError:
        return None
    return document.get("schemaVersion") if isinstance(document, dict) else None


def _check_ours(manifest: Manifest, config: StageConfig, path: str) -> None:
    if manifest.run.uid != config.run.uid:
        raise ConfigMismatch(
            f"{path} was written by run {manifest.run.namespace}/{manifest.run.name} ({manifest.run.uid}): choose "
            "another storage.uri",
            field="storage.uri",
        )
    if manifest.config_digest != config.provenance.config_digest:
        raise ConfigMismatch(
            f"{path} was written with configuration {manifest.config_digest}, this one is "
            f"{config.provenance.config_digest}: start a new run with spec.from (by hand: parent) instead",
            field="provenance.configDigest",
        )


def _check_the_same_bits(manifest: Manifest, config: StageConfig, threads: ComputeThreads, path: str) -> None:
    """Raise `ConfigMismatch` if ranks, samplers or threads differ, which would change a deterministic run's bits."""
    ranks = config.stage.resources.learners
    if manifest.world_size != ranks:
        raise ConfigMismatch(
            f"{path} was written by {manifest.world_size} learner ranks, this attempt has {ranks}, and another number "
            "of ranks adds up in another order, which recipe.deterministic rules out: give the stage "
            f"{manifest.world_size} again, or start a new run from this checkpoint (spec.from; by hand: parent)",
            field="stage.resources.learners",
        )
    before = manifest.compute_threads
    if before is None:
        return
    if isinstance(before, int):
        _check_threads("learner ranks", [before], [max(threads.learners)], path)
        return
    _check_threads("learner ranks", before.learners, threads.learners, path)
    if len(before.samplers) != len(threads.samplers):
        raise ConfigMismatch(
            f"{path} was written with {len(before.samplers)} samplers, this attempt has {len(threads.samplers)}, and "
            "which responses share an engine decides their last bits, which recipe.deterministic rules out: give the "
            f"stage {len(before.samplers)} again, or start a new run from this checkpoint (spec.from; by hand: parent)",
            field="stage.resources.samplers",
        )
    _check_threads("samplers", before.samplers, threads.samplers, path)


def _check_threads(whose: str, before: Sequence[int], now: Sequence[int], path: str) -> None:
    if list(before) == list(now):
        return
    needed = _counts(before)
    raise ConfigMismatch(
        f"{path} was written by {whose} with {needed} CPU threads each, here they have {_counts(now)}, and another "
        "number of threads adds up in another order, which recipe.deterministic rules out: set the environment "
        f"variable OMP_NUM_THREADS to {needed} for all pods of theirs (unset for 1), or start a new run from this "
        "checkpoint (spec.from; by hand: parent)",
        field="OMP_NUM_THREADS",
    )


def _counts(threads: Sequence[int]) -> str:
    """Return one number if all are equal, otherwise all of them."""
    return str(threads[0]) if len(set(threads)) == 1 else ", ".join(map(str, threads))


async def _fetch_parent(
    config: StageConfig, parent: ParentRef, learner: Learner | None, workdir: Path, inputs: Inputs | None
) -> ResumePoint:
    settings = config.storage.model_copy(update={"uri": parent.uri.rstrip("/")})
    store = open_storage(settings.uri, settings.endpoint, settings.region)
    try:
        manifest, digest = await asyncio.to_thread(read_manifest, store, "")
    except ObjectMissing as e:
        raise ConfigMismatch(f"parent.uri {parent.uri} holds no checkpoint: {e}", field="parent.uri") from e
    if digest != parent.digest:
        raise ConfigMismatch(
            f"the manifest at {parent.uri} has digest {digest}, parent.digest says {parent.digest}: it is not the "
            "checkpoint that was meant",
            field="parent.digest",
        )
    if manifest.kind is not ManifestKind.CHECKPOINT:
        raise ConfigMismatch(f"{parent.uri} is an {manifest.kind.value}, not a Checkpoint", field="parent.uri")
    if manifest.run.uid != config.run.uid:
        await asyncio.to_thread(_pin, store, config.run)
    elif inputs is not None:
        check_inputs(manifest, config, inputs, parent.uri)
    try:
        return await _fetch(store, settings, "", manifest, parent, learner, workdir=workdir, own=False)
    except OtherModel as e:
        raise ConfigMismatch(
            f"parent.uri {parent.uri} is a checkpoint of {manifest.model}, and not of {config.model.uri}: {e}: set "
            "model.uri to the model that it was trained from, or name another checkpoint",
            field="parent.uri",
        ) from e


def _pin(store: ObjectStore, run: RunIdentity) -> None:
    """Ask the other run to keep this payload: our attempts may start from it until we have our own checkpoint."""
    try:
        store.put_bytes(f"{PIN}{run.uid}.json", run.to_json())
    except StorageError as e:
        log.warning("%s could not be pinned, the run that wrote it may prune it: %s", store.uri, e)


async def _fetch(
    store: ObjectStore,
    settings: Storage,
    prefix: str,
    manifest: Manifest,
    ref: ParentRef,
    learner: Learner | None,
    *,
    workdir: Path,
    own: bool,
) -> ResumePoint:
    directory = workdir / f"resume-{ref.digest.removeprefix('sha256:')[:16]}"
    ours = [f for f in manifest.files if not f.path.startswith(_LEARNER)]
    await asyncio.to_thread(download_files, store, prefix, directory, ours)
    state = await asyncio.to_thread(load_state, directory)
    if (state.step, state.total_steps) != (manifest.step, manifest.total_steps):
        raise CheckpointDamaged(f"its state is of step {state.step}, its manifest of step {manifest.step}")
    if learner is not None:
        await learner.download(str(directory), settings, prefix, manifest)
    log.info("going on from %s (step %d)", ref.uri, manifest.step)
    return ResumePoint(manifest, ref, state, str(directory), own)
