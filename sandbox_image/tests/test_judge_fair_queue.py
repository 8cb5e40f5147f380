"""Runs that share a judge: each gets its part of the slots' time, and of the queue, whatever the others send."""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcoder_sandbox.fair_queue import RUNS_REMEMBERED, FairQueue, Full


def work_through(queue: FairQueue[tuple[str, float]], slots: int, until: float, now: float = 0.0) -> Counter[str]:
    """Slots' time by run, where each item is (run, seconds that its program takes); takes until `until`."""
    busy: list[tuple[float, int, str, float]] = []
    had: Counter[str] = Counter()
    number = count()
    while now < until:
        while len(busy) < slots and len(queue):
            run, seconds = queue.take(now)
            heapq.heappush(busy, (now + seconds, next(number), run, now))
        if not busy:
            break
        now, _, run, began = heapq.heappop(busy)
        queue.done(run, began, now)
        had[run] += now - began
    return had


def flooded(queue: FairQueue[tuple[str, float]], run: str, seconds: float, items: int) -> None:
    for _ in range(items):
        queue.add(run, (run, seconds), 0.0)


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize(("heavy", "light"), [(1.0, 1.0), (10.0, 1.0), (30.0, 0.1)])
def test_two_floods_share_the_time_whatever_a_program_of_each_takes(slots: int, heavy: float, light: float) -> None:
    queue: FairQueue[tuple[str, float]] = FairQueue(100_000)
    flooded(queue, "heavy", heavy, 1000)
    flooded(queue, "light", light, 50_000)
    had = work_through(queue, slots, until=300.0)
    assert abs(had["heavy"] - had["light"]) <= 2 * slots * heavy


def test_newcomer_is_next_though_a_flood_waits_since_long() -> None:
    queue: FairQueue[tuple[str, float]] = FairQueue(1000)
    flooded(queue, "flood", 1.0, 500)
    work_through(queue, 2, until=50.0)
    queue.add("new", ("new", 1.0), 50.0)
    assert queue.take(50.0)[0] == "new"


def test_run_that_asked_for_little_cannot_take_all_afterwards() -> None:
    queue: FairQueue[str] = FairQueue(1000)
    for _ in range(600):
        queue.add("flood", "flood", 0.0)
    now = 0.0
    for _ in range(50):  # it always has one program under way, and never one that has to wait
        queue.add("little", "little", now)
        taken = [queue.take(now) for _ in range(10)]
        assert taken.count("little") == 1
        if now:
            queue.done("little", now - 1.0, now)
        for _ in range(9):
            queue.done("flood", now, now + 1.0)
        now += 1.0
    for _ in range(50):
        queue.add("little", "little", now)
    queue.done("little", now - 1.0, now)
    turns = []
    for _ in range(20):
        turns.append(queue.take(now))
        queue.done(turns[-1], now, now + 1.0)
        now += 1.0
    assert 8 <= turns.count("little") <= 13


def test_newcomer_is_held_to_what_others_have_had_and_not_to_what_was_expected_of_them() -> None:
    queue: FairQueue[str] = FairQueue(1000)
    for _ in range(60):
        queue.add("flood", "flood", 0.0)
    now = 0.0
    for _ in range(20):  # its programs take a hundred seconds, as far as is known
        queue.take(now)
        queue.done("flood", now, now + 100.0)
        now += 100.0
    for _ in range(8):  # and now a second
        queue.take(now)
    for _ in range(10):
        queue.add("new", "new", now + 0.5)
    for _ in range(8):
        queue.done("flood", now, now + 1.0)
    now += 1.0
    turns = []
    for _ in range(10):
        turns.append(queue.take(now))
        queue.done(turns[-1], now, now + 1.0)
        now += 1.0
    assert turns.count("new") >= 5


def test_what_a_run_has_had_counts_when_it_comes_back() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for name in ("a", "b", "b", "b"):
        queue.add(name, name, 0.0)
    assert queue.take(0.0) == "a"
    queue.done("a", 0.0, 10.0)
    queue.add("a", "a", 10.0)
    assert queue.take(10.0) == "b"
    queue.done("b", 10.0, 14.0)
    assert queue.take(14.0) == "b", "it has had 4 s, the other 10 s"


def test_free_slots_do_not_all_go_to_one_run_before_anything_is_known_of_it() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for name in ("a", "a", "b", "b"):
        queue.add(name, name, 0.0)
    assert {queue.take(0.0), queue.take(0.0)} == {"a", "b"}


def test_program_under_way_counts_with_what_those_of_its_run_usually_take() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for _ in range(20):
        queue.add("long", "long", 0.0)
        queue.add("short", "short", 0.0)
    now = 0.0
    for name, seconds in [("long", 10.0), *[("short", 1.0)] * 10]:
        assert queue.take(now) == name
        queue.done(name, now, now + seconds)
        now += seconds
    assert [queue.take(now) for _ in range(4)] == ["long", "short", "short", "short"], "both have had 10 s"


def test_run_that_sends_more_while_it_waits_keeps_its_turn() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for name in ("a", "b", "a"):
        queue.add(name, name, 0.0)
    assert queue.take(0.0) == "a"
    queue.done("a", 0.0, 10.0)
    queue.add("b", "b", 10.0)
    assert queue.take(10.0) == "b", "it has had nothing, the other 10 s"


def test_newcomer_is_level_with_what_those_who_wait_have_under_way() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for name in ("a", "a"):
        queue.add(name, name, 0.0)
    assert queue.take(0.0) == "a"
    for name in ("new", "new"):
        queue.add(name, name, 100.0)
    assert queue.take(100.0) == "new"
    queue.done("a", 0.0, 110.0)
    queue.done("new", 100.0, 120.0)
    assert queue.take(120.0) == "a", "it has had 110 s, the other 20 s and what it found"


@pytest.mark.parametrize("beside", [[], ["b"]])
def test_newcomer_where_none_waits_is_ahead_of_no_run(beside: list[str]) -> None:
    queue: FairQueue[str] = FairQueue(100)
    under_way = ["a", "a", *beside]  # all for as long, so that b has had less
    for name in under_way:
        queue.add(name, name, 0.0)
    assert sorted(queue.take(0.0) for _ in under_way) == under_way
    for name in ("new", "new"):
        queue.add(name, name, 100.0)
    for name in ("a", "a"):
        queue.done(name, 0.0, 100.0)
    queue.add("a", "a", 100.0)
    assert queue.take(100.0) == "new"
    queue.done("new", 100.0, 105.0)
    assert queue.take(105.0) == "a", "neither is owed anything"


def test_newcomers_programs_are_expected_to_take_what_others_take() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for _ in range(30):
        queue.add("a", "a", 0.0)
    now = 0.0
    for _ in range(20):
        queue.take(now)
        queue.done("a", now, now + 10.0)
        now += 10.0
    assert queue.take(now) == "a"
    for _ in range(2):
        queue.add("new", "new", now + 8.0)
    assert [queue.take(now + 8.0) for _ in range(2)] == ["new", "a"], "two free slots do not both go to one"


def test_run_is_served_first_come_first_served() -> None:
    queue: FairQueue[int] = FairQueue(100)
    for item in range(5):
        queue.add("a", item, 0.0)
    first = queue.take(0.0)
    queue.put_back("a", first)
    queue.done("a", 0.0, 0.0)
    assert [queue.take(0.0) for _ in range(5)] == [0, 1, 2, 3, 4]


def test_full_queue_takes_what_a_smaller_run_sends_and_gives_back_the_newest_of_the_largest() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(6)
    for item in range(6):
        assert queue.add("flood", ("flood", item), 0.0) is None
    with pytest.raises(Full):
        queue.add("flood", ("flood", 6), 0.0)
    assert [queue.add("new", ("new", item), 0.0) for item in range(3)] == [("flood", 5), ("flood", 4), ("flood", 3)]
    with pytest.raises(Full):
        queue.add("new", ("new", 3), 0.0)
    assert queue.add("third", ("third", 0), 0.0) is not None
    assert len(queue) == 6


def test_full_queue_makes_no_room_for_a_run_that_has_one_less_waiting() -> None:
    queue: FairQueue[str] = FairQueue(5)
    for name in ("a", "a", "a", "b", "b"):
        queue.add(name, name, 0.0)
    with pytest.raises(Full):  # else the other would have one less, and both would go on in turns
        queue.add("b", "b", 0.0)


STEPS = st.lists(st.tuples(st.sampled_from("atdrx"), st.sampled_from("ABC"), st.floats(0, 5)), max_size=80)


@given(STEPS, st.integers(1, 6))
def test_everything_leaves_once_and_no_more_waits_than_may(steps: list[tuple[str, str, float]], most: int) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(most)
    now, number = 0.0, count()
    added: list[tuple[str, int]] = []
    left: list[tuple[str, int]] = []
    under_way: list[tuple[tuple[str, int], float]] = []
    for step, run, seconds in steps:
        now += seconds
        if step in "ax":  # twice as often as the rest
            item = (run, next(number))
            try:
                displaced = queue.add(run, item, now)
            except Full:
                assert len(queue) >= most
                continue
            added.append(item)
            left += [displaced] if displaced else []
            assert len(queue) <= most
        elif step == "t" and len(queue):
            under_way.append((queue.take(now), now))
        elif step == "d" and under_way:
            item, began = under_way.pop(0)
            queue.done(item[0], began, now)
            left.append(item)
        elif step == "r" and len(queue):
            item = next(iter(queue))
            queue.remove(item[0], item, now)
            left.append(item)
    rest = [*left, *queue, *(item for item, _ in under_way)]
    assert sorted(rest) == sorted(added)
    for item, began in under_way:
        queue.done(item[0], began, now)
    while len(queue):
        item = queue.take(now)
        queue.done(item[0], now, now)
    assert not queue._runs, "nothing is remembered of anybody once nobody has anything to do"


def test_names_without_number_leave_no_trace_without_number() -> None:
    queue: FairQueue[str] = FairQueue(10_000)
    names = [str(number) for number in range(RUNS_REMEMBERED + 100)]
    for name in names:
        queue.add(name, name, 0.0)
    assert [queue.take(0.0) for _ in names] == names
    queue.add("waits", "waits", 0.0)
    for name in names:
        queue.done(name, 0.0, 10.0)
    assert len(queue._runs) == RUNS_REMEMBERED
    assert queue.take(10.0) == "waits"
    assert list(queue._runs) == ["waits"], "none waits that has had less"
