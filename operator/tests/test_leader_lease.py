"""Who leads, decided from what was seen of the Lease and by our own clock: no time that another wrote is believed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from virtual_clock import run_virtually

from deepcoder_operator.kube import errors, lease
from deepcoder_operator.kube.lease import (
    ANSWER_SECONDS,
    LEASE_SECONDS,
    RENEW_SECONDS,
    RETRY_SECONDS,
    Election,
    Record,
    Seen,
    Step,
    decide,
    look,
    read,
)


def record(holder: str = "other", renewed: str = "2026-01-01T00:00:00Z", seconds: float = 12) -> Record:
    return Record(holder, seconds, renewed, 0)


@pytest.mark.parametrize(
    ("seen", "now", "expected"),
    [
        (None, 0, (Step.CREATE, 2)),
        (Seen(record(""), 0), 0, (Step.TAKE, 2)),
        (Seen(record("me"), 0), 100, (Step.RENEW, 2)),
        (Seen(record(), 100), 100, (Step.WAIT, 2)),
        (Seen(record(), 100), 111, (Step.WAIT, 1)),
        (Seen(record(), 100), 112, (Step.TAKE, 2)),
        (Seen(record(seconds=60), 100), 115, (Step.WAIT, 2)),
    ],
    ids=["absent", "let go", "mine", "fresh", "nearly over", "over", "as long as its holder says"],
)
def test_lease_is_taken_when_it_is_free_or_its_holder_was_silent(
    seen: Seen | None, now: float, expected: tuple[Step, float]
) -> None:
    assert decide(seen, "me", now) == expected


def test_only_a_change_shows_that_the_holder_lives_whatever_time_it_wrote() -> None:
    first = look(None, record(renewed="1999-01-01T00:00:00Z"), 5)
    assert first == Seen(record(renewed="1999-01-01T00:00:00Z"), 5)
    assert look(first, record(renewed="1999-01-01T00:00:00Z"), 9) == first
    assert look(first, record(renewed="2099-01-01T00:00:00Z"), 9) == Seen(record(renewed="2099-01-01T00:00:00Z"), 9)
    assert look(first, None, 9) is None


def test_lease_that_somebody_emptied_counts_as_let_go() -> None:
    assert read({"spec": None}) == Record("", LEASE_SECONDS, "", 0)


def test_leader_stops_well_before_anybody_else_may_begin() -> None:
    assert LEASE_SECONDS - RENEW_SECONDS >= 4, "time for what is under way to come to its end"


class Api:
    """One Lease with versions, and switches that make the API server unreachable, slow, or lose its answers."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.reachable, self.version = True, 0
        self.seconds, self.mute = 0.0, False
        self.asked: list[str] = []
        self.delay: Callable[[], None] = lambda: None

    def put(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.lease = {"metadata": {"resourceVersion": str(self.version)}, "spec": spec}
        return self.lease

    async def find(self, *_: Any) -> dict[str, Any] | None:
        await self._there("find")
        return self.lease

    async def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        await self._there("create")
        if self.lease is not None:
            raise errors.AlreadyExists("there is one", 409)
        return self.put(obj["spec"])

    async def patch(self, _: Any, __: str, ___: str, patch: dict[str, Any]) -> dict[str, Any]:
        await self._there("patch")
        if self.lease is None:
            raise errors.NotFound("there is none", 404)
        if patch["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise errors.Conflict("it has changed", 409)
        written = self.put(self.lease["spec"] | patch["spec"])
        if self.mute:
            raise errors.Unavailable("its answer was lost")
        return written

    async def _there(self, what: str) -> None:
        self.asked.append(what)
        self.delay()
        await asyncio.sleep(self.seconds)
        if not self.reachable:
            raise errors.Unavailable("no answer")


class World:
    """An API server, and replicas under one clock that the test moves."""

    def __init__(self) -> None:
        self.api, self.now = Api(), 100.0

    def replica(self, name: str) -> Election:
        api: Any = self.api
        return Election(api, "ns", "lease", name, lambda: self.now)


@pytest.fixture
def world() -> World:
    return World()


async def test_first_comer_leads_and_another_waits_as_long_as_it_renews(world: World) -> None:
    first, second = world.replica("a"), world.replica("b")
    for _ in range(20):
        await first.turn()
        await second.turn()
        world.now += 2
    assert (first.leads, second.leads) == (True, False)
    assert first.leader.is_set()
    assert not second.leader.is_set()


async def test_two_that_find_no_lease_at_once_do_not_both_lead(world: World) -> None:
    replicas = [world.replica(name) for name in "abcde"]
    results = await asyncio.gather(*(r.turn() for r in replicas), return_exceptions=True)
    assert sum(r.leads for r in replicas) == 1
    assert sum(isinstance(r, errors.AlreadyExists) for r in results) == 4


async def test_silent_leader_is_followed_and_has_itself_stopped_before(world: World) -> None:
    first, second = world.replica("a"), world.replica("b")
    await first.turn()
    ended = taken = None
    began = world.now
    while taken is None:
        if ended is None and not first.leads:
            ended = world.now - began
        await second.turn()
        taken = world.now - began if second.leads else None
        world.now += 0.5
    assert ended == RENEW_SECONDS
    assert taken == LEASE_SECONDS
    assert world.api.lease is not None
    assert world.api.lease["spec"]["leaseTransitions"] == 1


def test_standby_follows_a_leader_that_is_gone_at_the_first_look_after_its_lease() -> None:
    """In virtual time: on a busy machine a standby looks less often (`test_leader_failover`)."""

    async def followed() -> float:
        api: Any = Api()
        clock = asyncio.get_running_loop().time
        first, second = (Election(api, "ns", "lease", name, clock) for name in "ab")
        leading = asyncio.create_task(first.run())
        await first.leader.wait()
        standby = asyncio.create_task(second.run())
        await asyncio.sleep(15 * RETRY_SECONDS + 1)
        leading.cancel()
        await second.leader.wait()
        standby.cancel()
        return clock()

    seconds = run_virtually(followed()) - 15 * RETRY_SECONDS
    assert LEASE_SECONDS <= seconds <= LEASE_SECONDS + RETRY_SECONDS


def test_leader_keeps_its_lease_when_each_answer_takes_nearly_as_long_as_it_may() -> None:
    """A renewal that needs more than one such answer would be over too late."""

    async def kept() -> tuple[bool, dict[str, Any]]:
        api = Api()
        kube: Any = api
        clock = asyncio.get_running_loop().time
        first, second = (Election(kube, "ns", "lease", name, clock) for name in "ab")
        api.seconds = ANSWER_SECONDS - 0.01
        tasks = [asyncio.create_task(each.run()) for each in (first, second)]
        await asyncio.sleep(120)
        ended = tasks[0].done()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert api.lease is not None
        return not ended and first.leads and not second.leads, api.lease["spec"]

    leads, spec = run_virtually(kept())
    assert leads
    assert "leaseTransitions" not in spec, "nobody took it"


async def test_leader_renews_with_one_request_and_reads_only_what_it_cannot_know(world: World) -> None:
    first, api = world.replica("a"), world.api
    await first.turn()
    assert api.asked == ["find", "create"]
    for _ in range(3):
        await first.turn()
    assert api.asked[2:] == ["patch"] * 3

    api.asked.clear()
    api.mute = True
    with pytest.raises(errors.Unavailable):
        await first.turn()
    api.mute = False
    await first.turn()
    assert api.asked == ["patch", "find", "patch"], "the write without an answer was carried out, and is not a conflict"

    api.asked.clear()
    assert api.lease is not None
    api.put(api.lease["spec"])
    await first.turn()
    assert api.asked == ["patch", "find", "patch"], "somebody changed it, but not its holder"
    assert first.leads


async def test_own_time_counts_from_the_write_that_others_see_and_not_from_the_look_before_it(world: World) -> None:
    first, second = world.replica("a"), world.replica("b")
    await first.turn()
    await second.turn()
    world.api.delay = lambda: setattr(world, "now", world.now + 3)
    await first.turn()
    sent = world.now - 3
    world.api.delay = lambda: None
    await second.turn()
    world.now = sent + RENEW_SECONDS
    assert not first.leads
    world.now = sent + LEASE_SECONDS
    await second.turn()
    assert not second.leads, "it counts from when it saw the write, which is later"


async def test_leader_that_slept_through_its_time_sends_nothing_and_is_told(world: World) -> None:
    first = world.replica("a")
    await first.turn()
    first.check()
    world.now += 30
    with pytest.raises(errors.LeadershipLost, match="could not be renewed"):
        first.check()
    assert not first.leads


async def test_leader_whose_lease_another_holds_has_lost(world: World) -> None:
    first = world.replica("a")
    await first.turn()
    assert world.api.lease is not None
    world.api.put(world.api.lease["spec"] | {"holderIdentity": "b"})
    with pytest.raises(errors.LeadershipLost, match="is held by b"):
        await first.turn()


async def test_lease_that_is_deleted_under_its_leader_is_made_again(world: World) -> None:
    first = world.replica("a")
    await first.turn()
    world.api.lease = None
    await first.turn()
    assert first.leads
    assert world.api.lease is not None


async def test_unreachable_server_makes_nobody_leader_and_time_runs_on(world: World) -> None:
    first, second = world.replica("a"), world.replica("b")
    await first.turn()
    world.api.reachable = False
    for replica in (first, second):
        with pytest.raises(errors.Unavailable):
            await replica.turn()
    world.now += RENEW_SECONDS
    assert not first.leads
    world.now += LEASE_SECONDS
    with pytest.raises(errors.Unavailable):
        await second.turn()
    assert not second.leads


async def test_answer_that_came_late_does_not_prolong_what_was_asked_before(world: World) -> None:
    """The server may have written long before we heard of it: our time counts from the question."""
    first = world.replica("a")
    world.api.delay = lambda: setattr(world, "now", world.now + 3)
    await first.turn()
    assert world.now == 106, "two requests, and the second one writes"
    world.now = 103 + RENEW_SECONDS
    assert not first.leads


async def test_lease_that_is_let_go_is_taken_at_the_next_look(world: World) -> None:
    first, second = world.replica("a"), world.replica("b")
    await first.turn()
    await second.turn()
    await first.release()
    assert not first.leads
    with pytest.raises(errors.LeadershipLost, match="was released"):
        first.check()
    await second.turn()
    assert second.leads


async def test_restarted_container_takes_its_own_lease_back_at_once(world: World) -> None:
    await world.replica("a").turn()
    again = world.replica("a")
    await again.turn()
    assert again.leads


async def test_loop_ends_with_the_leadership(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(lease, "FAILED_SECONDS", 0.01)
    first = world.replica("a")
    task = asyncio.create_task(first.run())
    async with asyncio.timeout(60):
        await first.leader.wait()
        world.api.reachable = False
        world.now += RENEW_SECONDS
        with pytest.raises(errors.LeadershipLost):
            await task


async def test_loop_ends_as_soon_as_another_is_seen_to_hold_the_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own time is not over, but an uninstallation has taken the Lease and deletes what it would make again."""
    monkeypatch.setattr(lease, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(lease, "FAILED_SECONDS", 0.01)
    first = world.replica("a")
    task = asyncio.create_task(first.run())
    async with asyncio.timeout(60):
        await first.leader.wait()
        assert world.api.lease is not None
        world.api.put(world.api.lease["spec"] | {"holderIdentity": "b"})
        with pytest.raises(errors.LeadershipLost, match="is held by b"):
            await task
    assert lease.LEADER._value.get() == 0, "no longer served as the leader's"


async def test_whoever_takes_the_lease_away_goes_on_once_nobody_can_lead_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    first, api = world.replica("a"), cast(Any, world.api)
    await first.turn()
    monkeypatch.setattr(lease.asyncio, "sleep", sleep)
    await lease.take_away(api, "ns", "lease", "uninstallation", 300)
    assert [seconds for seconds in slept if seconds] == [LEASE_SECONDS]


async def test_lease_that_was_left_to_others_is_theirs_once_it_is_over_and_one_they_have_is_not_touched(
    world: World,
) -> None:
    api: Any = world.api
    await lease.take_away(api, "ns", "lease", "uninstallation", 300)
    await lease.leave_to_others(api, "ns", "lease", "uninstallation", 5)
    later = world.replica("a")
    await later.turn()
    assert not later.leads
    world.now += 5
    await later.turn()
    assert later.leads
    before = world.api.lease
    await lease.leave_to_others(api, "ns", "lease", "uninstallation", 5)
    assert world.api.lease == before
