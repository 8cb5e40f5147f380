"""Saves a run's state and ends the run: weights first, then the rest of the state, without losing a step.

A save has two halves. `copy` copies the newest step's weights aside and starts their upload. The commit adds the rest
of the state and makes it a checkpoint. That state includes work that is still to be trained on and was sampled with
older weights. In strict order such work must be judged first, because it cannot be sampled again. Training does not
wait for that: the commit is promised, and made when the last verdict arrives. In window order unfinished work is
sampled again.

`leave` is the end of every run. A promised commit is made or, if its weights are no longer the newest, completed with
what there is. Then everything unsaved is copied, work in flight may finish until the deadline of the stop, everything
is committed, and the run ends only when storage has it.

If a save fails in the background, the next save tries again. At the end there is no next save, so it is tried once more
here; if that fails, the run fails.

A deterministic run never commits work that was cut off: it would be sampled again with newer weights and in other
waves. It leaves without that checkpoint, and goes on from the newest one, whose bits are those of an undisturbed run.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.recipe import Order
from deepcoder_trainer.checkpoint.errors import CheckpointFailed
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.pipeline.stage_progress import StageProgress
from deepcoder_trainer.pipeline.work_buffer import Left, WorkBuffer
from deepcoder_trainer.protocols import Checkpoints, Ending
from deepcoder_trainer.stopping import Moment, Stop, StopReached

log = logging.getLogger(__name__)


@dataclass
class _Promise:
    """A promised commit of weights that are copied aside. Its figures are those of their step; its work may be
    unfinished."""

    left: Left
    state: PipelineState
    """Without the work."""
    metrics: dict[str, float]
    gate: GateRecord | None
    keeping: asyncio.Task[None] | None = None


class Saving:
    """Makes the saves of one stage's loop."""

    def __init__(self, checkpoints: Checkpoints, work: WorkBuffer, progress: StageProgress, stop: Stop) -> None:
        self._checkpoints = checkpoints
        self._work = work
        self._progress = progress
        self._stop = stop
        self._copied: int | None = None
        self._promise: _Promise | None = None
        self._saved_step = progress.step

    @property
    def copied(self) -> bool:
        """Whether the newest step's weights are copied aside without a promised commit."""
        return self._copied == self._progress.step

    @property
    def owed(self) -> bool:
        """Whether anything is not part of a checkpoint yet: a step, or that the stage is over."""
        return self._saved_step < self._progress.step or self._progress.over

    async def kept(self) -> None:
        """Wait until no commit is promised. Raises the error of a failed rollout; the promise then remains."""
        if self._promise is not None and (keeping := self._promise.keeping) is not None:
            await asyncio.wait({keeping})
            keeping.result()

    async def copy(self) -> None:
        """Copy the weights aside, once per step, and start their upload. Call it after `kept`."""
        if not self.copied:
            await self._checkpoints.copy(self._progress.step)
            self._copied = self._progress.step

    async def save(self) -> None:
        """Copy the weights aside and commit them, or promise to. Returns when training may continue. Call it after
        `kept`."""
        await self.copy()
        promise = self._what_goes_with_them()
        if self._work.policy.order is Order.WINDOW or promise.left.settled:
            await self._commit(promise)
        else:
            self._promise, self._copied = promise, None
            promise.keeping = asyncio.create_task(self._keep(promise))

    async def leave(self) -> Ending:
        """Save everything unsaved, weights first, and record how the run ended."""
        final, given_up = self._progress.over, False
        if (promise := self._promise) is not None:
            await self.close()
            newest = promise.state.step == self._progress.step
            if newest:
                await self._settle(promise.left)
            given_up = not await self._commit_exact(promise) and newest
        if self.owed and not given_up:
            await self.copy()
            promise = self._what_goes_with_them()
            if not final:  # the next stage draws its own problems, so unfinished work of this one is not needed
                await self._settle(promise.left)
            await self._commit_exact(promise, final=final)
        await self._until_committed(final=final)
        return Ending(self._saved_step, drained=not final, gate=self._progress.gate)

    async def close(self) -> None:
        """End the background tasks of the loop."""
        if self._promise is not None and (keeping := self._promise.keeping) is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    def _what_goes_with_them(self) -> _Promise:
        progress = self._progress
        return _Promise(self._work.left(), progress.state(), dict(progress.metrics), progress.gate)

    async def _keep(self, promise: _Promise) -> None:
        await self._work.settled(promise.left)
        await self._commit(promise)

    async def _commit(self, promise: _Promise, *, final: bool = False) -> None:
        """Commit the weights that were copied aside, with everything else that a resumed run needs."""
        left = promise.left.unfinished()
        state = replace(promise.state, groups=left.finished, pending=left.pending, next_group_id=left.next_group_id)
        await self._checkpoints.commit(state, metrics=promise.metrics, final=final, gate=promise.gate)
        self._promise = self._copied = None
        self._saved_step = state.step

    async def _commit_exact(self, promise: _Promise, *, final: bool = False) -> bool:
        """Commit, unless work of a deterministic run was cut off. Returns whether it did."""
        lost = promise.left.waiting_for
        if final or not lost or not self._work.policy.deterministic:
            await self._commit(promise, final=final)
            return True
        log.warning(
            "step %d is not saved: groups %s were cut off, and what they would be sampled as now is not what an "
            "undisturbed run has; the next attempt goes on from the newest checkpoint",
            promise.state.step, lost,
        )  # fmt: skip
        await self._checkpoints.close()
        self._promise = self._copied = None
        return False

    async def _settle(self, left: Left) -> None:
        """Let work in flight finish while there is time."""
        try:
            await self._stop.before(Moment.SETTLED, self._work.settled(left))
        except StopReached:
            log.warning("groups %s are cut off by the stop", left.waiting_for)
        except Exception as error:  # the run is leaving: it saves what is left
            log.error("groups %s are lost: %s", left.waiting_for, error)

    async def _until_committed(self, *, final: bool) -> None:
        """Wait until storage has this step's checkpoint. There is no later save, so it is tried twice."""
        try:
            await self._checkpoints.wait()
        except CheckpointFailed as error:
            log.warning("saving step %d once more: %s", self._progress.step, error)
            await self.copy()
            if not await self._commit_exact(self._what_goes_with_them(), final=final):
                raise
            await self._checkpoints.wait()
