"""Uploads and downloads of a rank's files. Ranks share no disk, so each rank moves its own files.

A rank uploads what it wrote, and downloads the files that hold its part of the state; the checkpoint's metadata is
fetched first and says which. A checkpoint that does not fit this model is detected here, before anything is loaded, so
that the reader can fall back to another. Local files are removed whether an upload succeeds or not, and those of a
damaged checkpoint when another one is downloaded: a 14B model leaves 12 GB on each of 16 ranks, and storage may fail
more than once.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from deepcoder_contracts.manifest import FileEntry, Manifest
from deepcoder_contracts.stage import Storage
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged
from deepcoder_trainer.checkpoint.opening import open_run_storage
from deepcoder_trainer.checkpoint.transfer import download_files, upload_files
from deepcoder_trainer.learner.pretrained import write_pretrained
from deepcoder_trainer.learner.rank import LearnerRank
from deepcoder_trainer.learner.rank_settings import LEARNER_DIR, METADATA


class RankFiles:
    """The files of one rank. `upload` and `download` may run in a thread during training."""

    def __init__(self, learner: LearnerRank) -> None:
        self._learner = learner
        self._pretrained: dict[str, list[Path]] = {}
        """Files that this rank wrote for an export, by folder. All other folders hold checkpoints."""
        self._brought: Path | None = None
        """Folder of the newest download, successful or not."""

    def save_pretrained(self, directory: str) -> None:
        """Collective. Write the model in Hugging Face layout, on rank 0."""
        weights = self._learner.weights()
        if not self._learner.first:
            for _ in weights:  # gathering is collective
                pass
            self._pretrained[directory] = []
            return
        settings = self._learner.settings
        self._pretrained[directory] = write_pretrained(
            weights, Path(settings.model_dir), Path(directory), settings.recipe.precision
        )

    def upload(self, directory: str, storage: Storage, prefix: str) -> list[FileEntry]:
        """Upload the files that this rank wrote below `directory`, and remove them locally even if that fails."""
        root, pretrained = Path(directory), self._pretrained.pop(directory, None)
        # The save of this directory, not the newest: training may have saved again since.
        save = self._learner.saved(root) if pretrained is None else None
        try:
            return upload_files(open_run_storage(storage), prefix, root, save.files() if save else pretrained or [])
        finally:
            for path in save.written if save else pretrained or []:
                path.unlink(missing_ok=True)

    def download(self, directory: str, storage: Storage, prefix: str, manifest: Manifest) -> None:
        """Download the files that this rank will read, at any world size. Raises `CheckpointDamaged`."""
        store, root = open_run_storage(storage), Path(directory)
        if self._brought is not None and self._brought != root:
            shutil.rmtree(self._brought, ignore_errors=True)
        self._brought = root
        stored = {f.path: f for f in manifest.files}
        metadata = f"{LEARNER_DIR}/{METADATA}"
        if metadata not in stored:
            raise CheckpointDamaged(f"its manifest names no {metadata}")
        download_files(store, prefix, root, [stored[metadata]])
        needed = [f"{LEARNER_DIR}/{name}" for name in self._learner.files_to_load(root)]
        if missing := [path for path in needed if path not in stored]:
            raise CheckpointDamaged(f"its manifest does not name {', '.join(missing[:3])}, which {metadata} does")
        download_files(store, prefix, root, [stored[path] for path in needed])
