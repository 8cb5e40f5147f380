"""Exports a stage's model in Hugging Face layout: files, comparison, card, and last the manifest.

After a crash before the manifest nothing counts, and the next attempt writes its own export. An existing export is
kept unchanged, including its card. If `compare` finds that the export is not the checkpoint's model, it gets neither
card nor manifest, and the attempt fails, because serving it would be worse. Its files stay, as after a crash, until a
later attempt cleans up: if an attempt was started twice, both processes use the same folder, and one must not delete
what the other is about to commit. If the comparison is not possible, the card says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from deepcoder_contracts.layout import export_dir
from deepcoder_contracts.manifest import FileEntry, ManifestKind
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.code import code_digest
from deepcoder_trainer.checkpoint.committed import CommittedCheckpoint, committed, put_manifest
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, CheckpointFailed, ObjectMissing, StorageError
from deepcoder_trainer.checkpoint.listing import read_listing
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.transfer import upload_files
from deepcoder_trainer.modelcard import CARD, Difference, NotCompared, stage_card
from deepcoder_trainer.types import Learner

Compare = Callable[[CommittedCheckpoint, str, Sequence[FileEntry]], Awaitable[Difference | NotCompared]]
"""Compares the logits of an export (URI of its folder, files) with those of its checkpoint, within a deadline.

Raises `ExportRuined` if the export is another model, and `StopReached` if a stop comes before that is known. In both
cases nothing is published.
"""

log = logging.getLogger(__name__)


async def not_asked(_checkpoint: CommittedCheckpoint, _uri: str, _files: Sequence[FileEntry]) -> NotCompared:
    """Compare nothing; a `Compare`."""
    return NotCompared("the export was made without a comparison")


class StageExport:
    """Writes the export of one attempt."""

    def __init__(
        self, config: StageConfig, learner: Learner, store: ObjectStore, workdir: Path, compare: Compare
    ) -> None:
        """`workdir` is local scratch space."""
        self._config = config
        self._learner = learner
        self._store = store
        self._workdir = workdir
        self._compare = compare

    async def of(self, checkpoint: CommittedCheckpoint, metrics: Mapping[str, float]) -> CommittedCheckpoint:
        """Export `checkpoint`, whose weights the learner has, with a card and a manifest.

        If storage already has an export of the same checkpoint, return that. Raises `CheckpointFailed`.
        """
        exported = await asyncio.to_thread(self._exported, checkpoint)
        if exported is not None:
            return exported
        source = checkpoint.manifest
        prefix = export_dir(source.stage, source.step, self._config.ordinal)
        directory = self._workdir / prefix.replace("/", "-")
        try:
            await self._learner.save_pretrained(str(directory))
            files = await self._learner.upload(str(directory), self._config.storage, prefix)
            found = await self._compare(checkpoint, f"{self._store.uri}/{prefix}", files)
            files += await asyncio.to_thread(self._upload_card, checkpoint, metrics, found, directory, prefix)
        except StorageError as e:
            raise CheckpointFailed(f"{prefix} could not be exported: {e}") from e
        manifest = source.model_copy(
            update={
                "kind": ManifestKind.EXPORT,
                "ordinal": self._config.ordinal,
                "parent": checkpoint.ref,
                "metrics": dict(metrics) | (found.figures() if isinstance(found, Difference) else {}),
                "created_at": datetime.now(UTC),
                "code_digest": code_digest(),
                "files": sorted(files, key=lambda f: f.path),
            }
        )
        return await asyncio.to_thread(put_manifest, self._store, prefix, manifest)

    def _exported(self, checkpoint: CommittedCheckpoint) -> CommittedCheckpoint | None:
        """Return an export of this checkpoint by any attempt, unless it was committed after a later attempt's claim."""
        stage = checkpoint.manifest.stage
        for export in read_listing(self._store.list(f"{stage}/")).exports():
            try:
                manifest, digest = read_manifest(self._store, export.path)
            except (CheckpointDamaged, ObjectMissing) as e:
                log.warning("%s is not used: %s", export.path, e)
                continue
            if manifest.parent == checkpoint.ref:
                return committed(self._store, export.path, digest, manifest)
            if export.ordinal == self._config.ordinal and export.step == checkpoint.manifest.step:
                raise CheckpointFailed(f"{export.path} is an export of another checkpoint ({manifest.parent})")
        return None

    def _upload_card(
        self,
        checkpoint: CommittedCheckpoint,
        metrics: Mapping[str, float],
        found: Difference | NotCompared,
        directory: Path,
        prefix: str,
    ) -> list[FileEntry]:
        """Upload the model card: origin of the model, and how far its logits differ from the checkpoint's."""
        stage, precision = self._config.stage, self._config.recipe.precision
        folder, dtype = f"{self._store.uri}/{prefix}", precision.dtype
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / CARD
        path.write_text(stage_card(checkpoint.manifest, checkpoint.ref, folder, metrics, dtype, found, stage.rope))
        return upload_files(self._store, prefix, directory, [path])
