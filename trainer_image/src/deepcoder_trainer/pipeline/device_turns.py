"""Turns of sampler and learner on shared devices (`placement: Colocated`).

    sample ► judge ► sampler sleeps ► learner unparks ► train ► weights out ► learner parks ► sampler wakes ► admit

Only one of them has memory at a time. Weights go out between the turns: the sampler allocates memory for the weights
only, loads them from the learner, and allocates the rest when the learner has parked. A stop may interrupt any of these
changes, so each can be repeated. Where they share nothing, only the weights go out.
"""

from __future__ import annotations

from deepcoder_trainer.types import Learner, Sampler


class Turns:
    """The two of one stage's loop."""

    def __init__(self, sampler: Sampler, learner: Learner, *, shared: bool) -> None:
        self.shared = shared
        """Whether they take turns at all."""
        self._sampler = sampler
        self._learner = learner

    async def learn(self) -> None:
        """The learner's turn. Nothing is sampled until `push`."""
        if self.shared:
            await self._sampler.sleep()
            await self._learner.unpark()

    async def push(self, version: int) -> None:
        """The learner's weights to the samplers, whose turn it is then."""
        await self._sampler.update_weights(await self._learner.export_weights(), version)
        if self.shared:
            await self._learner.park()
            await self._sampler.wake()
