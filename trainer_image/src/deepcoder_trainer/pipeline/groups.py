"""Creates a run's groups: draws a problem for each slot, samples and judges it, and redraws it if the recipe says so. A
batch is trained only if enough of it is judged.

`admission` is one task next to the loop, which starts one task per group. The first rollout that fails ends all of
them, and everything that waits for the work buffer gets its error.

If more than 1 % of a batch, or of an evaluation, cannot be judged, that is the failure `SandboxUnavailable`. It loses
no trained step: the batch is stored, as sampled, in the checkpoint of the step before it, and the resumed run judges
the unjudged samples again. If no checkpoint can hold the batch, it is sampled again: a stage's first batch; in window
order, a batch that was incomplete when the checkpoint of the step before was committed; and in strict order with
maxOffPolicy 0, any batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from deepcoder_contracts.recipe import Recipe
from deepcoder_trainer.background import first_cause
from deepcoder_trainer.pipeline.refill import drawn_problem, teaches_nothing
from deepcoder_trainer.pipeline.work_buffer import WorkBuffer
from deepcoder_trainer.problems.prompt import EncodedProblem
from deepcoder_trainer.protocols import SandboxUnavailable
from deepcoder_trainer.rollout.metrics import quarantined
from deepcoder_trainer.rollout.rollout import Admitted, Rollout
from deepcoder_trainer.types import Batch, Group

QUARANTINE_RATIO = 0.01
"""Share of unjudged samples above which the statistics of a batch are worthless."""


class Groups:
    """Creates the groups of one stage's loop."""

    def __init__(
        self,
        recipe: Recipe,
        problems: Sequence[EncodedProblem],
        rollout: Rollout,
        work: WorkBuffer,
        restored: Sequence[Group],
        *,
        gate: Callable[[], Awaitable[None]] | None,
        on_unjudged: Callable[[Batch], None],
        on_dropped: Callable[[Group], None],
    ) -> None:
        """`restored` are finished groups from an earlier attempt."""
        self._recipe = recipe
        self._problems = problems
        self._rollout = rollout
        self._work = work
        self._restored = {group.group_id for group in restored}
        self._gate = gate
        self._on_unjudged = on_unjudged
        self._on_dropped = on_dropped
        self._dropped: list[Group] = []

    async def admission(self) -> None:
        """Start a rollout for each group that the buffer admits. The first failure wakes all waiters."""
        try:
            async with asyncio.TaskGroup() as rollouts:
                while (admitted := await self._work.admit(self._gate)) is not None:
                    rollouts.create_task(self._one_rollout(admitted), name=f"group-{admitted.group_id}")
        except BaseExceptionGroup as group:
            self._work.fail(first_cause(group))

    async def batch(self, step: int, total_step: int) -> Batch:
        """Return the complete, judged batch of step `step`. Raises SandboxUnavailable if too much is not judged."""
        groups = await self._work.batch(total_step)
        if _unjudged(groups) > QUARANTINE_RATIO:
            groups = await self._judge_again(groups)
        batch = Batch(step, groups)
        if _unjudged(groups) > QUARANTINE_RATIO:
            self._on_unjudged(batch)
            raise SandboxUnavailable(
                f"judges failed on {len(quarantined(batch.samples))} of {len(batch.samples)} responses of step {step}, "
                f"more than {QUARANTINE_RATIO:.0%}: {SandboxUnavailable.WHERE_TO_LOOK}"
            )
        return batch

    def take_dropped(self) -> tuple[Group, ...]:
        """Return what was sampled since the last call and is not trained on."""
        dropped, self._dropped = self._dropped, []
        return tuple(dropped)

    async def _one_rollout(self, admitted: Admitted) -> None:
        group_id = admitted.group_id
        while True:
            group = await self._rollout.group(
                admitted,
                self._problem(group_id, admitted.draw),
                on_sampled=lambda: self._work.sampled(group_id),
            )
            if not (self._work.may_be_drawn_again(group_id) and teaches_nothing(group)):
                break
            self._dropped.append(group)
            self._on_dropped(group)
            self._work.drawn_again(group_id)
            admitted = replace(admitted, draw=admitted.draw + 1)
        self._work.done(group)

    async def _judge_again(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """Return the groups, after judging again those that an earlier attempt left unjudged."""
        async with asyncio.TaskGroup() as tasks:
            again = [
                tasks.create_task(self._rollout.judge_again(group, self._problem(group.group_id, group.draw)))
                for group in groups
                if group.group_id in self._restored and quarantined(group.samples)
            ]
        judged = {task.result().group_id: task.result() for task in again}
        for group in judged.values():
            self._work.judged_again(group)
        self._restored -= judged.keys()
        return tuple(judged.get(group.group_id, group) for group in groups)

    def _problem(self, group_id: int, draw: int) -> EncodedProblem:
        recipe = self._recipe
        return self._problems[drawn_problem(recipe.seed, group_id, draw, recipe.refill_limit, len(self._problems))]


def _unjudged(groups: Sequence[Group]) -> float:
    """Return the share of samples that no judge could judge."""
    samples = [sample for group in groups for sample in group.samples]
    return len(quarantined(samples)) / max(1, len(samples))
