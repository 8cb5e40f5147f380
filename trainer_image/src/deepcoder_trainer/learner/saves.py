"""A rank's saves: its state is copied to the CPU, then written in the background while training goes on.

One save is written at a time. A save is kept until its files are handed over, by which time training may have begun the
next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import async_save as dcp_async_save

from deepcoder_trainer.checkpoint.errors import CheckpointFailed
from deepcoder_trainer.learner.dcp import SafetensorsWriter
from deepcoder_trainer.learner.rank_settings import LEARNER_DIR


@dataclass(frozen=True)
class Save:
    """A rank's part of one save, written or still being written."""

    future: Any
    writer: SafetensorsWriter

    def files(self) -> list[Path]:
        """Wait until everything is written, and return the files that this rank wrote. Raises `CheckpointFailed`."""
        try:
            self.future.result()
        except CheckpointException as e:  # a BaseException, which would end the process
            causes = "; ".join(f"rank {rank}: {cause}" for rank, (cause, _) in e.failures.items())
            raise CheckpointFailed(f"the learner's state could not be written: {causes}") from None
        return self.written

    @property
    def written(self) -> list[Path]:
        """Files that this rank has written so far, even if the save failed."""
        return list(self.writer.files)


class Saves:
    """The saves of rank `rank` of `world`."""

    def __init__(self, rank: int, world: int) -> None:
        self._rank, self._world = rank, world
        self._newest: Save | None = None
        self._kept: dict[Path, Save] = {}
        """Each save by its directory, until `take` hands it over."""

    def begin(self, directory: Path, state: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
        """Collective. Copy `state` and write it below `directory`/learner, after the previous save has been written."""
        self.wait()
        writer = SafetensorsWriter(directory / LEARNER_DIR, self._rank)
        future = dcp_async_save(dict(state), storage_writer=writer, process_group=group, no_dist=self._world == 1)
        self._newest = self._kept[directory] = Save(future, writer)

    def wait(self) -> None:
        """Wait until the newest save has been written, or has failed, which `Save.files` raises."""
        if self._newest is not None:
            self._newest.future.exception()

    def take(self, directory: Path) -> Save:
        """Return the save into `directory`. The caller takes it over, with its files."""
        return self._kept.pop(directory)
