"""The work buffer: which groups may be sampled, with which weights, and which of them make the next batch.

Steps are counted over all stages. Step T trains batch T and makes weights of version T. A slot is taken when a group is
admitted, and freed when the group has been trained *and* the new weights are out, never when it is merely finished. So
admission bounds staleness, and nothing is sampled only to be discarded.

    admitted ──sampled──► judging ──done──► in a batch ──trained, weights out──► slot free

Strict order: batch T is the T-th set of B groups, whichever finish first (the count continues from earlier stages, even
if their batches had another size). It is sampled entirely with version max(start, T-1-η), where η = maxOffPolicy. It is
admitted when that version is out and batch T-1 has been sampled. A version is pushed only when no batch is left that
must be sampled with an older one. So a batch is a function of weights and group ids alone.

Window order: up to (η+1)·B groups are active, and weights change in flight. A batch consists of the groups that
finished first, and of those that are due: a group admitted at version v must be trained by step v+η+1. After each
batch, at most B·(d-T) of the remaining groups may be due by step d. Groups that would exceed this go into the batch,
which waits for them if necessary. So no long response is left behind forever, and none exceeds the bound.

All responses in flight share the samplers, and the learner waits for those of the next batch. If every group were
admitted as soon as a slot is free, groups that are needed last would delay them. So while fewer than B of the groups
that are not in training have been sampled, further groups are admitted only up to η quarters of a batch's responses in
flight. This uses the capacity that the tail of a batch leaves free, without taking what the tail needs.

Everything runs on one event loop, and every change is one uninterrupted call. `fail` wakes every waiter with the error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from deepcoder_contracts.recipe import Order, Recipe
from deepcoder_trainer.rollout.rollout import Admitted
from deepcoder_trainer.types import Group

log = logging.getLogger(__name__)

RUN_AHEAD_SHARE = 0.25
"""Groups beyond the next batch are admitted while fewer responses than this are in flight, as a share of a batch's
responses per version of staleness. Measured (`make bench-pipeline`): without this limit, window order is slower than
strict order at maxOffPolicy 1."""
QUIET_SECONDS = 300.0
"""Time without any event after which the log says what a batch waits for."""


@dataclass(frozen=True)
class WorkPolicy:
    """The settings of recipe and stage that the buffer depends on."""

    batch_groups: int
    """B, the number of groups in a batch."""
    max_off_policy: int
    """η, in versions."""
    order: Order
    last_step: int
    """The stage's last step, counted over all stages."""
    deterministic: bool = False
    group_size: int = 1
    """Responses per group."""
    refill_limit: int = 0
    """How often a slot may be redrawn."""
    origin: int = 0
    """Groups trained in earlier stages, minus B for each of their steps: 0 if their batches had B groups, too."""

    @classmethod
    def of(cls, recipe: Recipe, last_step: int, origin: int = 0) -> WorkPolicy:
        """Return the policy of a recipe in a stage that ends with `last_step`."""
        return cls(
            recipe.prompts_per_step,
            recipe.max_off_policy,
            recipe.order,
            last_step,
            deterministic=recipe.deterministic,
            group_size=recipe.group_size,
            refill_limit=recipe.refill_limit if recipe.refill else 0,
            origin=origin,
        )

    def groups_until(self, step: int) -> int:
        """Return the first group id that, in strict order, is trained after `step`."""
        return self.origin + step * self.batch_groups

    def step_of(self, group_id: int) -> int:
        """Return the step that trains a group in strict order."""
        return (group_id - self.origin) // self.batch_groups + 1


@dataclass
class _Slot:
    version: int
    """Version of the weights at admission."""
    left: int
    """Responses that are not sampled yet."""
    draws_left: int = 0
    """How often the slot may still be redrawn. While it may be, it counts as being sampled."""
    group: Group | None = None
    """The group, once it is judged."""
    finished: int = 0
    """Position in the order in which groups finished, from 1."""

    @property
    def sampled(self) -> bool:
        return self.left == 0 and self.draws_left == 0


@dataclass(frozen=True)
class Unfinished:
    """The buffer's part of a checkpoint. With the version, it is all that a resumed buffer needs."""

    finished: tuple[Group, ...] = ()
    """Groups that are judged and not trained, in group_id order."""
    pending: tuple[int, ...] = ()
    """Groups that were admitted and not finished; they are sampled again."""
    next_group_id: int = 0
    """First group that was never admitted."""


@dataclass(frozen=True)
class Left:
    """The work that a checkpoint of weights `version` must keep. The set of slots is fixed when this is taken; their
    groups may be judged, and even trained, afterwards."""

    version: int
    slots: Mapping[int, _Slot]
    again: frozenset[int]
    """Groups that an earlier attempt left unfinished and that are not admitted again yet."""
    next_group_id: int

    @property
    def settled(self) -> bool:
        """Whether all groups that were sampled with older weights are judged. They cannot be sampled again."""
        return not self.waiting_for

    @property
    def waiting_for(self) -> list[int]:
        """Groups that were admitted with older weights and are not judged."""
        return sorted(g for g, slot in self.slots.items() if slot.group is None and slot.version < self.version)

    def unfinished(self) -> Unfinished:
        """Return the current state for a checkpoint."""
        finished = {g: slot.group for g, slot in self.slots.items() if slot.group is not None}
        return Unfinished(
            finished=tuple(finished[g] for g in sorted(finished)),
            pending=tuple(sorted((self.slots.keys() - finished.keys()) | self.again)),
            next_group_id=self.next_group_id,
        )


class WorkBuffer:
    """Admits groups and makes batches of them, as the module's docstring describes."""

    def __init__(self, policy: WorkPolicy, version: int, resumed: Unfinished | None = None) -> None:
        """`version` is the number of steps, over all stages, that trained the weights.

        Raises ValueError if the resumed groups and those still to admit are not exactly what the remaining steps train.
        """
        end, trained = policy.groups_until(policy.last_step), policy.groups_until(version)
        resumed = resumed or Unfinished(next_group_id=trained)
        self.policy = policy
        self.version = version
        """Version of the weights that the samplers have."""
        self._slots: dict[int, _Slot] = {}
        for group in resumed.finished:
            self._slots[group.group_id] = _Slot(group.admitted_version, 0, 0, group, len(self._slots) + 1)
        self._count = len(self._slots)
        self._next = resumed.next_group_id
        self._to_admit = [*range(end - 1, self._next - 1, -1), *sorted(resumed.pending, reverse=True)]
        self._resumed = frozenset(self._slots)
        self._in_training: frozenset[int] = frozenset()
        self._changed = asyncio.Event()
        self._closed = False
        self._failure: BaseException | None = None
        known = {*self._slots, *self._to_admit}
        if len(known) != len(self._slots) + len(self._to_admit) or len(known) != end - trained:
            raise ValueError(
                f"{len(self._slots)} finished and {len(resumed.pending)} pending groups, and those from "
                f"{self._next}, do not add up to what steps {version + 1} to {policy.last_step} train"
            )

    async def admit(self, gate: Callable[[], Awaitable[None]] | None = None) -> Admitted | None:
        """Wait until the next group may be sampled, and return it; None if no more will be admitted.

        `gate` is awaited before each group, but only once per wave: an engine starts a wave only when it is complete.
        """
        await self._until(lambda: self._closed or not self._to_admit or self._may_admit(self._to_admit[-1]))
        if gate is not None and self._to_admit and not self._closed and self._begins(self._to_admit[-1]):
            await gate()
        if self._closed or not self._to_admit:
            return None
        group_id = self._to_admit.pop()
        self._next = max(group_id + 1, self._next)
        self._slots[group_id] = _Slot(self.version, self.policy.group_size, self.policy.refill_limit)
        return Admitted(group_id, self.version, self._wave(group_id) if self.policy.deterministic else None)

    def sampled(self, group_id: int) -> None:
        """Record that one more response of a group is sampled. It may not be judged yet."""
        self._slots[group_id].left -= 1
        self._notify()

    def may_be_drawn_again(self, group_id: int) -> bool:
        """Whether a judged group may be dropped and its slot redrawn."""
        return self._slots[group_id].draws_left > 0

    def drawn_again(self, group_id: int) -> None:
        """Record that a group is dropped and its slot is sampled again with another problem."""
        slot = self._slots[group_id]
        slot.left, slot.draws_left = self.policy.group_size, slot.draws_left - 1
        self._notify()

    def done(self, group: Group) -> None:
        """Record that a group is judged. Raises ValueError the second time."""
        slot = self._slots[group.group_id]
        if slot.group is not None:
            raise ValueError(f"group {group.group_id} was finished twice")
        self._count += 1
        slot.left, slot.draws_left, slot.group, slot.finished = 0, 0, group, self._count
        self._notify()

    async def batch(self, step: int) -> tuple[Group, ...]:
        """Wait until all groups of batch `step` are judged; return them in group_id order. They keep their slots."""
        await self._until(lambda: self._choose(step) is not None, f"batch {step}")
        self._in_training = frozenset(self._choose(step) or ())
        return tuple(self._group(g) for g in sorted(self._in_training))

    def judged_again(self, group: Group) -> None:
        """Replace a judged group by the same group with new outcomes."""
        self._slots[group.group_id].group = group

    async def may_push(self, version: int) -> None:
        """Wait until weights of `version` may be pushed: in strict order, until no group needs older weights."""
        if self.policy.order is Order.WINDOW:
            return
        end = self.policy.groups_until(min(version + self.policy.max_off_policy, self.policy.last_step))
        await self._until(lambda: self._all_sampled(end))

    def release(self, groups: Iterable[Group], version: int) -> None:
        """Free the slots of trained groups, after weights of `version` were pushed."""
        for group in groups:
            del self._slots[group.group_id]
        self._in_training = frozenset()
        self.version = version
        self._notify()

    def close(self) -> None:
        """Admit no more groups. Admitted groups continue."""
        self._closed = True
        self._notify()

    async def settled(self, left: Left) -> None:
        """Wait until every group of `left` that was admitted with older weights is judged."""
        await self._until(lambda: left.settled)

    def fail(self, error: BaseException) -> None:
        """Record that a rollout failed for good. Every waiter raises the error."""
        self._failure = self._failure or error
        self._notify()

    def left(self) -> Left:
        """Return the work that a checkpoint of the pushed weights must keep.

        In strict order, groups that are sampled with these same weights are left out: sampling them again gives the
        same responses.
        """
        end = self._next
        if self.policy.order is Order.STRICT:
            end = min(end, self.policy.groups_until(self.version + self.policy.max_off_policy))
        return Left(
            version=self.version,
            slots={g: slot for g, slot in self._slots.items() if g < end},
            again=frozenset(g for g in self._to_admit if g < end),
            next_group_id=max(end, self.policy.groups_until(self.version)),
        )

    def active(self) -> dict[str, int]:
        """Return the number of groups that hold a slot, by state."""
        done = sum(slot.group is not None for slot in self._slots.values())
        sampled = sum(slot.left == 0 for slot in self._slots.values())
        return {"sampling": len(self._slots) - sampled, "judging": sampled - done, "done": done}

    def _may_admit(self, group_id: int) -> bool:
        p = self.policy
        if p.order is Order.WINDOW:
            return len(self._slots) < (p.max_off_policy + 1) * p.batch_groups and self._may_run_ahead()
        step = p.step_of(group_id)
        return self.version >= step - 1 - p.max_off_policy and self._all_sampled(p.groups_until(step - 1))

    def _may_run_ahead(self) -> bool:
        """Whether one more group may be admitted without delaying the next batch."""
        p = self.policy
        ahead = [slot for g, slot in self._slots.items() if g not in self._in_training]
        if len(ahead) < p.batch_groups or sum(slot.sampled for slot in ahead) >= p.batch_groups:
            return True
        under_way = sum(slot.left for slot in ahead)
        return under_way < p.max_off_policy * RUN_AHEAD_SHARE * p.batch_groups * p.group_size

    def _all_sampled(self, end: int) -> bool:
        """Whether every group below `end` has been sampled (or trained before)."""
        if self._to_admit and self._to_admit[-1] < end:
            return False
        return all(slot.sampled for g, slot in self._slots.items() if g < end)

    def _choose(self, step: int) -> list[int] | None:
        size = self.policy.batch_groups
        if self.policy.order is Order.STRICT:
            ids = list(range(self.policy.groups_until(step - 1), self.policy.groups_until(step)))
            return ids if all(g in self._slots and self._slots[g].group is not None for g in ids) else None
        due = {g: slot.version + self.policy.max_off_policy + 1 for g, slot in self._slots.items()}
        order = sorted((slot.finished, g) for g, slot in self._slots.items() if slot.group is not None)
        return choose_window(step, size, due, [g for _, g in order])

    def _group(self, group_id: int) -> Group:
        group = self._slots[group_id].group
        assert group is not None
        return group

    def _begins(self, group_id: int) -> bool:
        return not self.policy.deterministic or self._wave(group_id)[1] == 0

    def _wave(self, group_id: int) -> tuple[str, int, int]:
        """Return name, position and size of a group's wave: the groups of its batch that no checkpoint had finished."""
        step = self.policy.step_of(group_id)
        batch = range(self.policy.groups_until(step - 1), self.policy.groups_until(step))
        ids = [g for g in batch if g not in self._resumed]
        return f"step-{step}", ids.index(group_id), len(ids)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, ready: Callable[[], bool], what: str | None = None) -> None:
        while self._failure is None and not ready():
            try:
                async with asyncio.timeout(QUIET_SECONDS if what else None):
                    await self._changed.wait()
            except TimeoutError:
                waiting = [g for g, slot in sorted(self._slots.items()) if slot.group is None]
                sampling = [g for g in waiting if self._slots[g].left > 0]
                log.warning(
                    "%s: nothing has happened for %.0f s; groups %s are being sampled, %s are being judged",
                    what,
                    QUIET_SECONDS,
                    sampling,
                    sorted(set(waiting) - set(sampling)),
                )
        if self._failure is not None:
            raise self._failure


def choose_window(step: int, size: int, due: Mapping[int, int], finished: Sequence[int]) -> list[int] | None:
    """Return the group ids of batch `step` in window order, or None while it must wait for more groups.

    `due` maps each active group to the last step that may train it. `finished` lists judged groups in the order in
    which they finished.
    """
    if len(finished) < size:
        return None
    chosen: list[int] = []
    for deadline in sorted(set(due.values())):
        active = sum(d <= deadline for d in due.values())
        needed = active - size * (deadline - step) - sum(due[g] <= deadline for g in chosen)
        ripe = [g for g in finished if due[g] <= deadline and g not in chosen]
        if needed > len(ripe):
            return None
        chosen += ripe[: max(0, needed)]
    chosen += [g for g in finished if g not in chosen][: size - len(chosen)]
    return chosen
