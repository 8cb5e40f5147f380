"""Commits checkpoints: state copied aside, uploaded while training goes on, manifest last.

    copy:    learner.save (copy, training stops) -> [background] learner.upload
    commit:  [background] the upload's end, pipeline files, `before_commit` -> MANIFEST.json -> prune

The two steps are separate because a model takes minutes to upload, while the rest of the state takes moments but may
not be complete yet: unfinished sampling and evaluations are waited for during the upload of the weights. Only one save
is in progress at a time; the next one waits for it. Data without a manifest does not exist, so after a crash at any
point before the last put, the previous checkpoint counts. A failure in the background does not end training: it is
logged at once, and the next save tries again. After `MAX_FAILURES` in a row, or at the last save, it is raised.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.layout import MANIFEST, RUN, checkpoint_dir, claim_key, exit_key
from deepcoder_contracts.lineage import StoredCheckpoint
from deepcoder_contracts.manifest import Claim, ComputeThreads, FileEntry, Manifest, ManifestKind, ParentRef, RunRecord
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.code import code_digest, versions
from deepcoder_trainer.checkpoint.committed import CommittedCheckpoint, put_manifest
from deepcoder_trainer.checkpoint.errors import (
    CheckpointDamaged,
    CheckpointFailed,
    ConfigMismatch,
    NewerSchema,
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageError,
)
from deepcoder_trainer.checkpoint.exports import Compare, StageExport, not_asked
from deepcoder_trainer.checkpoint.inputs import Inputs
from deepcoder_trainer.checkpoint.listing import read_listing
from deepcoder_trainer.checkpoint.opening import open_run_storage
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.retention import payloads_to_prune
from deepcoder_trainer.checkpoint.state import PipelineState, save_state
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.transfer import put_new, retried, upload_files
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.runtime_info import RuntimeInfo
from deepcoder_trainer.types import Learner

MAX_FAILURES = 3
"""Number of failed saves in a row after which training stops."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveTimes:
    """Durations of the last committed save, in seconds."""

    waited: float
    """How long training waited for the previous save."""

    copy: float
    """How long training waited for the copy."""

    upload: float
    """Time in the background until storage had the manifest."""

    @property
    def stall(self) -> float:
        """How long training waited in total."""
        return self.waited + self.copy


@dataclass(frozen=True)
class _Copied:
    """Weights that were copied aside and are being uploaded."""

    step: int
    prefix: str
    directory: Path
    upload: asyncio.Task[list[FileEntry]]
    waited: float
    copy: float
    began: float
    """Start of the upload, by `time.monotonic`."""


class CheckpointWriter:
    """Writes the claim, the checkpoints, the export and the exit record of one attempt."""

    def __init__(
        self,
        config: StageConfig,
        learner: Learner | None,
        *,
        workdir: Path,
        parent: ParentRef | None = None,
        inputs: Inputs | None = None,
        store: ObjectStore | None = None,
        runtime_info: RuntimeInfo | None = None,
        threads: ComputeThreads | None = None,
    ) -> None:
        """`workdir` is local scratch space; `parent` is the checkpoint that this attempt started from, if any.

        Manifests record `inputs` and, of deterministic runs, the compute `threads` of the attempt's processes.
        """
        self._config = config
        self._learner = learner
        self._workdir = workdir
        self._store = store or open_run_storage(config.storage)
        self._inputs = inputs or Inputs()
        self._runtime_info = runtime_info or RuntimeInfo()
        self._threads = threads
        self._copied: _Copied | None = None
        self._background: asyncio.Task[None] | None = None
        self.parent = parent
        self.latest: CommittedCheckpoint | None = None
        self.times: SaveTimes | None = None
        self.failures = 0
        self.on_commit: Callable[[CommittedCheckpoint], None] = lambda _committed: None
        """Called with each checkpoint as soon as storage has its manifest. Must not raise."""
        self.before_commit: Callable[[], Awaitable[None]] = _nothing
        """Awaited before each manifest is put, to store metrics and samples first. Must be bounded and not raise."""
        self.compare: Compare = not_asked
        """Compares the export with its checkpoint, after its files are stored and before its card is written."""

    async def claim(self) -> None:
        """Claim the run's prefix and this attempt's ordinal, before anything else is read or written.

        Raises `ConfigMismatch` if the prefix belongs to another run or configuration, and `BadConfig` if storage
        ignores the condition of a put, because then two attempts could both commit.
        """
        run, digest = self._config.run, self._config.provenance.config_digest
        record = RunRecord(run=run, config_digest=digest, created_at=datetime.now(UTC))
        try:
            # Even if the first put creates the object, the second one, with another content, must find it.
            for later in (timedelta(), timedelta(microseconds=1)):
                again = record.model_copy(update={"created_at": record.created_at + later})
                await asyncio.to_thread(put_new, self._store, RUN, again.to_json())
        except ObjectExists:
            found = RunRecord.from_json(await asyncio.to_thread(self._store.get_bytes, RUN))
            if found.run != run:
                raise ConfigMismatch(
                    f"{self._store.uri} belongs to run {found.run.namespace}/{found.run.name} ({found.run.uid}): "
                    "choose another storage.uri",
                    field="storage.uri",
                ) from None
            if found.config_digest != digest:
                raise ConfigMismatch(
                    f"{self._store.uri} was begun with configuration {found.config_digest}, this one is {digest}: "
                    "a run's configuration never changes; start a new run, from its checkpoint if you like (by hand: "
                    "another storage.uri, and parent with the checkpoint's uri and digest)",
                    field="provenance.configDigest",
                ) from None
        else:
            raise BadConfig(
                f"the server of {self._store.uri} ignores If-None-Match: *, so two attempts could both commit: use "
                "storage that honours it",
                field="storage.endpoint",
            )
        stage, ordinal = self._config.stage.name, self._config.ordinal
        claim = Claim(run=run, stage=stage, ordinal=ordinal, claimed_at=datetime.now(UTC))
        try:
            await asyncio.to_thread(put_new, self._store, claim_key(stage, ordinal), claim.to_json())
        except ObjectExists:
            log.info("attempt %d of stage %s was claimed before: it continues after a restart", ordinal, stage)

    async def copy(self, step: int) -> None:
        """Copy the learner's state aside and start its upload. Returns when training may continue."""
        assert self._learner is not None, "an Evaluate stage has no checkpoints"
        asked = time.monotonic()
        await self._settle(raise_always=False)
        waited = time.monotonic() - asked
        prefix = checkpoint_dir(self._config.stage.name, step, self._config.ordinal)
        directory = self._workdir / prefix.replace("/", "-")
        began = time.monotonic()
        await self._learner.save(str(directory))
        copy = time.monotonic() - began
        upload = asyncio.create_task(self._learner.upload(str(directory), self._config.storage, prefix))
        self._copied = _Copied(step, prefix, directory, upload, waited, copy, time.monotonic())

    async def commit(
        self,
        state: PipelineState,
        *,
        metrics: Mapping[str, float],
        final: bool = False,
        gate: GateRecord | None = None,
    ) -> None:
        """Commit the weights that were copied aside, together with `state`, in the background. Returns at once."""
        copied, self._copied = self._copied, None
        assert copied is not None, "the weights are copied aside first"
        assert copied.step == state.step, "weights and state are of the same step"
        document = self._manifest(ManifestKind.CHECKPOINT, state, metrics, final=final, gate=gate)
        self._background = asyncio.create_task(self._commit(copied, state, document))

    async def wait(self) -> CommittedCheckpoint | None:
        """Wait until the last save is committed. Return the newest checkpoint. Raises `CheckpointFailed`."""
        await self._settle(raise_always=True)
        return self.latest

    async def export(self, metrics: Mapping[str, float]) -> CommittedCheckpoint:
        """Export the newest checkpoint: see `StageExport.of`."""
        assert self._learner is not None, "an Evaluate stage exports nothing"
        checkpoint = await self.wait()
        if checkpoint is None:
            raise CheckpointFailed("there is no checkpoint to export: save first")
        export = StageExport(self._config, self._learner, self._store, self._workdir, self.compare)
        made = await export.of(checkpoint, metrics)
        await self._tidy(checkpoint.manifest.step)  # an attempt that only exports makes no save that would prune
        return made

    async def write_exit(self, record: ExitRecord) -> None:
        """Write the exit record of this attempt."""
        key = exit_key(self._config.stage.name, self._config.ordinal)
        put = functools.partial(self._store.put_bytes, key, record.to_json())
        await asyncio.to_thread(retried, put, f"upload of {key}")

    async def close(self) -> None:
        """Cancel the upload of weights that were copied aside and will not be committed."""
        copied, self._copied = self._copied, None
        if copied is None:
            return
        copied.upload.cancel()
        [result] = await asyncio.gather(copied.upload, return_exceptions=True)
        if isinstance(result, Exception):
            log.error("the upload of step %d, which was not committed, failed: %s", copied.step, result)
        await asyncio.to_thread(shutil.rmtree, copied.directory, ignore_errors=True)

    async def _settle(self, *, raise_always: bool) -> None:
        """Wait for the save in the background, if there is one, and count or raise its failure."""
        if self._background is None:
            return
        task, self._background = self._background, None
        try:
            await task
        except (StorageError, CheckpointFailed, OSError) as e:
            if raise_always or self.failures >= MAX_FAILURES or isinstance(e, StorageDenied):
                raise CheckpointFailed(f"checkpoint failed ({self.failures} in a row): {e}") from e
            log.warning("training continues without the checkpoint that failed")

    async def _commit(self, copied: _Copied, state: PipelineState, manifest: Manifest) -> None:
        try:
            learner_files = await copied.upload
            files = learner_files + await asyncio.to_thread(self._upload_state, state, copied.directory, copied.prefix)
            await self.before_commit()
            manifest = manifest.model_copy(update={"files": sorted(files, key=lambda f: f.path)})
            committed = await asyncio.to_thread(put_manifest, self._store, copied.prefix, manifest)
        except (StorageError, CheckpointFailed, OSError) as e:
            self.failures += 1
            log.error("checkpoint failed (step %d, %d in a row): %s", copied.step, self.failures, e)
            raise
        finally:
            await asyncio.to_thread(shutil.rmtree, copied.directory, ignore_errors=True)
        self.latest, self.parent, self.failures = committed, committed.ref, 0
        self.times = SaveTimes(copied.waited, copied.copy, upload=time.monotonic() - copied.began)
        self.on_commit(committed)
        await self._tidy(committed.manifest.step)

    def _upload_state(self, state: PipelineState, directory: Path, prefix: str) -> list[FileEntry]:
        return upload_files(self._store, prefix, directory, save_state(state, directory))

    def _manifest(
        self,
        kind: ManifestKind,
        state: PipelineState,
        metrics: Mapping[str, float],
        *,
        final: bool,
        gate: GateRecord | None,
    ) -> Manifest:
        config = self._config
        revision = f"@{config.model.revision}" if config.model.revision else ""
        return Manifest(
            kind=kind,
            run=config.run,
            stage=config.stage.name,
            stage_index=config.stage.index,
            ordinal=config.ordinal,
            step=state.step,
            total_steps=state.total_steps,
            final=final,
            parent=self.parent,
            model=f"{config.model.uri}{revision}",
            model_files=dict(self._inputs.model_files),
            config_digest=config.provenance.config_digest,
            dataset_digest=self._inputs.dataset_digest,
            problems_digest=self._inputs.problems_digest,
            reward_digest=self._inputs.reward_digest,
            code_digest=code_digest(),
            versions=versions(),
            image=config.provenance.image,
            image_id=self._runtime_info.image_id,
            accelerator=self._runtime_info.accelerator,
            seed=config.recipe.seed,
            world_size=config.stage.resources.learners,
            compute_threads=self._threads,
            metrics=dict(metrics),
            gate=gate,
            created_at=datetime.now(UTC),
        )

    async def _tidy(self, newest: int) -> None:
        """Prune old checkpoints. A failure is only logged, because it costs nothing but space."""
        try:
            await asyncio.to_thread(self._prune, newest)
        except StorageError as e:
            log.warning("old checkpoints could not be pruned, the next save tries again: %s", e)

    def _prune(self, newest: int) -> None:
        """Remove payloads that need not be kept, and abandoned uploads. `newest` is the newest committed step."""
        stage, storage = self._config.stage.name, self._config.storage
        listing = read_listing(self._store.list(f"{stage}/"))
        valid = [c for c in listing.candidates() if c.path in listing.with_payload]
        doomed = payloads_to_prune(
            valid,
            storage.keep_last,
            storage.keep_every,
            listing.pinned,
            self._is_final,
        )
        for checkpoint in doomed:
            keep = frozenset({f"{checkpoint.path}/{MANIFEST}"})
            count = self._store.delete_prefix(f"{checkpoint.path}/", keep=keep)
            log.info("%s: payload pruned (%d files)", checkpoint.path, count)
        begun = read_listing(self._store.unfinished(f"{stage}/")).uncommitted
        made = {c.path for c in (*listing.committed, *listing.exported)}
        abandoned = {folder: name for folder, name in begun.items() if folder not in made} | dict(listing.uncommitted)
        for folder, name in abandoned.items():
            # Our own failed saves: only one save is in progress at a time, so those before `newest` are abandoned.
            given_up = name.ordinal == self._config.ordinal and name.step < newest
            if name.ordinal < self._config.ordinal or given_up:
                self._store.delete_prefix(f"{folder}/")
                log.info("%s: unfinished upload removed", folder)

    def _is_final(self, checkpoint: StoredCheckpoint) -> bool:
        """Whether a checkpoint ended the stage. True also for an unreadable one, so that it is kept."""
        try:
            return read_manifest(self._store, checkpoint.path)[0].final
        except (CheckpointDamaged, NewerSchema, ObjectMissing) as e:
            log.warning("%s keeps its files: %s", checkpoint.path, e)
            return True


async def _nothing() -> None:
    """The default of `before_commit`."""
