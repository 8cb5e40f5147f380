"""Turns of sampler and learner on shared devices (`placement: Colocated`).

    sample ► judge ► sampler sleeps ► learner unparks ► train ► weights out ► learner parks ► sampler wakes ► admit

Only one of them has memory at a time. Weights go out between the turns: the sampler allocates memory for the weights
only, loads them from the learner, and allocates the rest when the learner has parked. A stop may interrupt any of these
changes, so each can be repeated. Without shared devices there are no turns, and `push` only transfers the weights.
"""

from __future__ import annotations

from deepcoder_trainer.types import Learner, Sampler


class Turns:
    """Switches the devices of one stage between its sampler and its learner."""

    def __init__(self, sampler: Sampler, learner: Learner, *, shared: bool) -> None:
        self.shared = shared
        """Whether sampler and learner share devices."""
        self._sampler = sampler
        self._learner = learner

    async def learn(self) -> None:
        """Begin the learner's turn. Nothing is sampled until `push`."""
        if self.shared:
            await self._sampler.sleep()
            await self._learner.unpark()

    async def push(self, version: int) -> None:
        """Push the learner's weights to the samplers, and begin the samplers' turn."""
        await self._sampler.update_weights(await self._learner.export_weights(), version)
        if self.shared:
            await self._learner.park()
            await self._sampler.wake()
