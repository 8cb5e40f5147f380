"""What of a run reaches storage, and how it leaves: weights first, then what goes with them, and no step lost.

A save has two halves. `copy` puts the newest step's weights aside, and they are on their way; `commit` adds the rest of
the state and makes it a checkpoint. `leave` is the end of every run, whatever it ends for: what is not saved is copied,
what is in flight may finish until the stop's moment, all is committed, and storage has it before the run is over.

A save that fails in the background is the checkpoints' to retry with the next one; at the end there is no next one, so
it is tried once more here, and then it is the run's failure.
"""

from __future__ import annotations

import logging

from deepcoder_trainer.checkpoint.errors import CheckpointFailed
from deepcoder_trainer.course import Course
from deepcoder_trainer.ports import Checkpoints, Ending
from deepcoder_trainer.stopping import Moment, Stop, StopReached
from deepcoder_trainer.work import WorkBuffer

log = logging.getLogger(__name__)


class Saving:
    """The saves of one stage's loop."""

    def __init__(self, checkpoints: Checkpoints, work: WorkBuffer, course: Course, stop: Stop) -> None:
        self._checkpoints = checkpoints
        self._work = work
        self._course = course
        self._stop = stop
        self._copied: int | None = None
        self._saved_step = course.step
        self._saved_final = False

    @property
    def copied(self) -> bool:
        """Whether the newest step's weights are aside and not committed."""
        return self._copied == self._course.step

    @property
    def owed(self) -> bool:
        """Whether there is anything that no checkpoint has."""
        return self._saved_step < self._course.step or (self._course.over and not self._saved_final)

    async def copy(self) -> None:
        """Copy the weights aside, once a step; from here they are on their way to storage."""
        if not self.copied:
            await self._checkpoints.copy(self._course.step)
            self._copied = self._course.step

    async def commit(self, *, final: bool = False) -> None:
        """Commit the weights that were copied aside, with all else that a resumed run needs."""
        course = self._course
        state, metrics = course.state(self._work.unfinished()), dict(course.metrics)
        await self._checkpoints.commit(state, metrics=metrics, final=final, gate=course.gate)
        self._copied, self._saved_step, self._saved_final = None, course.step, final

    async def leave(self) -> Ending:
        """Save what is not saved, weights first, and tell how it ended."""
        final = self._course.over
        if self.owed:
            await self.copy()
            if not final:  # the next stage draws problems of its own
                await self._settle()
            await self.commit(final=final)
        await self._until_committed(final=final)
        return Ending(self._course.step, drained=not final, gate=self._course.gate)

    async def _settle(self) -> None:
        """Let finish what is in flight, while there is time. What does not is sampled anew by the resumed run."""
        try:
            await self._stop.before(Moment.SETTLED, self._work.settled(self._course.version))
        except StopReached:
            log.warning("groups %s are cut off by the stop and will be sampled anew", self._work.waiting_for())
        except Exception as error:  # the run is leaving: it saves what is left
            log.error("groups %s are lost and will be sampled anew: %s", self._work.waiting_for(), error)

    async def _until_committed(self, *, final: bool) -> None:
        """Until storage has this step's checkpoint: nothing else stands behind it, so it is tried twice."""
        try:
            await self._checkpoints.wait()
        except CheckpointFailed as error:
            log.warning("saving step %d once more: %s", self._course.step, error)
            await self.copy()
            await self.commit(final=final)
            await self._checkpoints.wait()
