"""The work buffer: staleness bounded, nothing lost or trained twice, no deadlock, whatever order things finish in."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcoder_contracts.recipe import Order
from deepcoder_trainer.pipeline import work_buffer
from deepcoder_trainer.pipeline.work_buffer import Unfinished, WorkBuffer, WorkPolicy, choose_window
from deepcoder_trainer.types import Group

runs = st.fixed_dictionaries(
    {
        "size": st.integers(1, 4),
        "eta": st.integers(0, 3),
        "steps": st.integers(1, 6),
        "start": st.integers(0, 3),
        "origin": st.integers(0, 5),
        "seed": st.integers(0, 2**16),
    }
)


def group(group_id: int, version: int) -> Group:
    return Group(group_id, f"p{group_id}", version, ())


class Run:
    """The controller's shape in miniature: rollouts end in random order, steps take random turns."""

    def __init__(
        self, order: Order, size: int, eta: int, steps: int, start: int, origin: int, seed: int, resumed=None
    ) -> None:
        self.policy = WorkPolicy(size, eta, order, start + steps, origin=origin)
        self.buffer = WorkBuffer(self.policy, start, resumed)
        self.random = random.Random(seed)
        self.start = start
        self.trained: list[int] = []
        self.sampled_with: dict[int, tuple[int, int]] = {}
        self.most_active = 0

    async def turns(self) -> None:
        for _ in range(self.random.randrange(20)):
            await asyncio.sleep(0)

    async def rollout(self, admitted) -> None:
        await self.turns()
        self.sampled_with[admitted.group_id] = (admitted.version, self.buffer.version)
        self.buffer.sampled(admitted.group_id)
        await self.turns()
        self.buffer.done(group(admitted.group_id, admitted.version))

    async def admission(self, tasks: asyncio.TaskGroup) -> None:
        while (admitted := await self.buffer.admit()) is not None:
            self.most_active = max(self.most_active, len(self.buffer._slots))
            tasks.create_task(self.rollout(admitted))

    async def __call__(self, stop_after: int | None = None) -> None:
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(self.admission(tasks))
            for step in range(self.start + 1, self.policy.last_step + 1):
                groups = await self.buffer.batch(step)
                for g in groups:
                    assert step - 1 - g.admitted_version <= self.policy.max_off_policy, "staler than allowed"
                self.trained += [g.group_id for g in groups]
                await self.turns()
                await self.buffer.may_push(step)
                self.buffer.release(groups, step)
                if step == stop_after:
                    self.buffer.close()
                    left = self.buffer.left()
                    await self.buffer.settled(left)
                    self.left = left.unfinished()
                    return


def all_of(run: dict) -> list[int]:
    """Groups of all its steps."""
    first = run["origin"] + run["start"] * run["size"]
    return list(range(first, first + run["steps"] * run["size"]))


@pytest.mark.parametrize("order", Order)
@given(run=runs)
@settings(max_examples=60, deadline=None)
def test_every_group_is_trained_once_and_none_is_too_stale(order: Order, run: dict) -> None:
    if order is Order.WINDOW:
        run = run | {"eta": max(1, run["eta"])}
    r = Run(order, **run)
    asyncio.run(r())
    assert sorted(r.trained) == all_of(run)
    size = run["size"]
    assert r.most_active <= (run["eta"] + 1) * size


@given(run=runs)
@settings(max_examples=60, deadline=None)
def test_a_strict_batch_is_sampled_wholly_with_the_version_its_step_says(run: dict) -> None:
    r = Run(Order.STRICT, **run)
    asyncio.run(r())
    for group_id, versions in r.sampled_with.items():
        step = (group_id - run["origin"]) // run["size"] + 1
        assert set(versions) == {max(run["start"], step - 1 - run["eta"])}
    assert r.trained == sorted(r.trained)


@pytest.mark.parametrize("order", Order)
@given(run=runs, stop=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_a_drained_run_goes_on_with_what_was_finished_and_loses_nothing(order: Order, run: dict, stop: int) -> None:
    if order is Order.WINDOW:
        run = run | {"eta": max(1, run["eta"])}
    stop = min(stop, run["steps"]) + run["start"]
    first = Run(order, **run)
    asyncio.run(first(stop_after=stop))
    if order is Order.STRICT and stop - run["start"] > run["eta"]:
        assert first.left.pending == (), "the batches that wanted older weights are whole"
    rest = run["steps"] - (stop - run["start"])
    if rest == 0:
        assert first.left.finished == ()
        return
    second = Run(order, run["size"], run["eta"], rest, stop, run["origin"], run["seed"] + 1, first.left)
    asyncio.run(second())
    assert sorted(first.trained + second.trained) == all_of(run)


async def test_a_failed_rollout_wakes_every_waiter_with_its_error() -> None:
    buffer = WorkBuffer(WorkPolicy(1, 0, Order.STRICT, 5), 0)
    await buffer.admit()
    buffer.release((), 1)
    waiters = [asyncio.create_task(buffer.batch(1)), asyncio.create_task(buffer.settled(buffer.left()))]
    waiters.append(asyncio.create_task(buffer.admit()))
    await asyncio.sleep(0)
    buffer.fail(RuntimeError("sampler gone"))
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [str(r) for r in results] == ["sampler gone"] * 3


async def test_groups_of_later_batches_wait_until_the_next_batch_leaves_samplers_free() -> None:
    buffer = WorkBuffer(WorkPolicy(2, 1, Order.WINDOW, 4, group_size=4), 0)

    async def admitted() -> bool:
        admission = asyncio.create_task(buffer.admit())
        await asyncio.sleep(0)
        return not (admission.cancel() if not admission.done() else False)

    assert [await admitted() for _ in range(3)] == [True, True, False], "the next batch is all that is sampled"
    for group_id in (0, 0, 0, 0, 1, 1):
        buffer.sampled(group_id)
    assert not await admitted(), "a quarter of a batch, two responses, is under way"
    buffer.sampled(1)
    assert [await admitted() for _ in range(2)] == [True, False], "one is, and then five are"
    buffer.sampled(1)
    assert await admitted(), "the next batch is sampled"


async def test_a_group_is_never_finished_twice() -> None:
    buffer = WorkBuffer(WorkPolicy(1, 0, Order.STRICT, 5), 0)
    await buffer.admit()
    buffer.done(group(0, 0))
    with pytest.raises(ValueError, match="twice"):
        buffer.done(group(0, 0))


def test_window_takes_the_first_finished_but_never_leaves_a_due_group_behind() -> None:
    # Group 0 must be trained by step 2, the others by step 3; batches of two.
    due = {0: 2, 1: 3, 2: 3, 3: 3}
    assert choose_window(1, 2, due, [3, 2]) == [3, 2]
    assert choose_window(2, 2, {0: 2, 1: 3}, [1]) is None
    assert choose_window(2, 2, due, [1, 2, 3]) is None, "group 0 is due now and is waited for"
    assert choose_window(2, 2, due, [1, 2, 0]) == [0, 1]


async def test_a_group_that_was_cut_off_is_sampled_anew_by_the_resumed_run() -> None:
    policy = WorkPolicy(2, 1, Order.WINDOW, 2)
    buffer = WorkBuffer(policy, 0)
    for group_id in range(4):
        await buffer.admit()
        buffer.sampled(group_id)
    buffer.done(group(2, 0))
    resumed = WorkBuffer(policy, 0, buffer.left().unfinished())
    for group_id in (0, 1, 3):
        again = await resumed.admit()
        assert again is not None
        assert again.group_id == group_id
        resumed.sampled(group_id)


def test_a_state_that_would_lose_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="do not add up"):
        WorkBuffer(WorkPolicy(2, 1, Order.STRICT, 4), 1, Unfinished(next_group_id=3))


async def test_a_batch_that_waits_long_names_the_groups_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(work_buffer, "QUIET_SECONDS", 0.01)
    buffer = WorkBuffer(WorkPolicy(3, 0, Order.STRICT, 1), 0)
    for _ in range(3):
        await buffer.admit()
    buffer.sampled(1)
    buffer.done(group(2, 0))
    waiting = asyncio.create_task(buffer.batch(1))
    while "groups [0] are being sampled, [1] are being judged" not in caplog.text:
        await asyncio.sleep(0.01)
    buffer.done(group(0, 0))
    buffer.done(group(1, 0))
    assert len(await waiting) == 3
