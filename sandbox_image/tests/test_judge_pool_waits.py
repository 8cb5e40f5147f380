"""What waits in a pool's queue: its deadline, its turn between runs, and what it is told."""

import time

import pytest
from scripted_slots import ScriptedSlot, wait_until

from deepcoder_sandbox import pool as pools
from deepcoder_sandbox.fair_queue import FairQueue
from deepcoder_sandbox.observer import Observer, Phase
from deepcoder_sandbox.pool import Overdue, Pool, QueueFull
from deepcoder_sandbox.zygote_process import ZygoteConfig


def held(pool, slots, asked):
    """The answer of a neighbour that holds the only slot, until it may go on."""
    wait_until(lambda: slots[0].ensured)
    neighbour = pool.submit(asked("neighbour", "wait"))
    wait_until(lambda: pool.busy)
    return neighbour


def test_deadline_that_passes_in_the_queue_is_no_answer_but_not_judged(slots, asked):
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    neighbour = held(pool, slots, asked)
    late = pool.submit(asked("late", deadline_s=0.001))
    in_time = pool.submit(asked("in time", deadline_s=600))
    time.sleep(0.01)
    slots[0].may_go_on.set()
    with pytest.raises(Overdue, match="again"):
        late.result(20)
    assert neighbour.result(20).passed is in_time.result(20).passed is True
    assert slots[0].judged == ["neighbour", "in time"]
    assert pool.close(10) is True


def test_overdue_submission_is_given_back_before_a_slot_is_free(slots, asked):
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    neighbour = held(pool, slots, asked)
    late, waiting = pool.submit(asked("late", deadline_s=1)), pool.submit(asked("waiting", deadline_s=600))
    cancelled = pool.submit(asked("cancelled", deadline_s=1))
    cancelled.cancel()
    for answer in (late, neighbour, cancelled):
        pool.give_back_overdue(answer)
    with pytest.raises(Overdue):
        late.result(0)
    assert pool.queued == 1
    assert not neighbour.done()
    slots[0].may_go_on.set()
    assert neighbour.result(20).passed is waiting.result(20).passed is True
    pool.give_back_overdue(neighbour)  # answered: nothing is left to give back
    assert pool.close(10) is True


def test_judging_that_the_queue_left_too_little_time_is_not_judged_and_no_failure(slots, asked, clock):
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    held(pool, slots, asked)
    behind = pool.submit(asked("behind", "slow", deadline_s=0.4))
    slots[0].may_go_on.set()
    with pytest.raises(Overdue):
        behind.result(20)
    assert pool.submit(asked("alone", "slow", deadline_s=0.1)).result(20).passed is None  # its client's own doing
    assert slots[0].judged == ["neighbour", "behind", "alone"]
    assert pool.close(10) is True


def test_judging_that_takes_longer_than_it_may_is_the_judges_failure_though_it_had_waited(
    slots, asked, clock, monkeypatch
):
    monkeypatch.setattr(pools.limits, "judging_deadline_s", lambda *_: 0.1)
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    held(pool, slots, asked)
    behind = pool.submit(asked("behind", "slow", deadline_s=1))
    slots[0].may_go_on.set()
    assert behind.result(20).passed is None
    assert pool.close(10) is True


def test_judging_that_took_until_the_deadline_is_a_failure_that_no_other_slot_could_mend(slots, asked, clock):
    pool = Pool(ZygoteConfig(), 2, "w", max_queued=10)
    wait_until(lambda: len(slots) == 2 and all(slot.ensured for slot in slots))  # for another one to be there
    assert pool.submit(asked("a", "slow", deadline_s=0.1)).result(20).passed is None
    assert sorted(slot.judged for slot in slots) == [[], ["a"]]
    assert pool.close(10) is True


def test_judging_for_a_client_without_a_deadline_is_given_up_at_the_judges_own(slots, asked, clock, monkeypatch):
    monkeypatch.setattr(pools.limits, "judging_deadline_s", lambda *_: 0.1)
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    began = clock.now
    assert pool.submit(asked("a", "slow")).result(20).passed is None
    assert clock.now - began < 1
    assert pool.close(10) is True


def test_deadline_counts_from_when_judging_begins_for_whoever_reads_ahead(slots, asked, clock):
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    held(pool, slots, asked)
    ahead = pool.submit(asked("ahead", deadline_s=0.2), queue_counts=False)
    too_long = pool.submit(asked("too long", "slow", deadline_s=0.2), queue_counts=False)
    clock.sleep(0.3)
    slots[0].may_go_on.set()
    assert ahead.result(20).passed is True
    assert too_long.result(20).passed is None
    assert pool.close(10) is True


@pytest.mark.parametrize(("count", "hint_s"), [(1, 9), (3, 3)])  # half of 89 and of 87, one or three at once
def test_hint_when_to_come_back_follows_what_judging_takes_from_the_first_submission_on(
    slots, asked, clock, monkeypatch, count, hint_s
):
    monkeypatch.setattr(ScriptedSlot, "judging_s", 0.2)
    pool = Pool(ZygoteConfig(), count, "w", max_queued=100)
    assert pool.submit(asked("a")).result(20).passed is True
    held = [pool.submit(asked(str(number), "wait")) for number in range(90)]
    wait_until(lambda: pool.busy == count)
    assert pool.retry_after_s() == hint_s
    for slot in slots:
        slot.may_go_on.set()
    assert all(answer.result(20).passed for answer in held)
    assert pool.close(10) is True


def test_flood_of_one_run_delays_another_by_no_more_than_what_is_under_way(slots, asked, clock, monkeypatch):
    monkeypatch.setattr(ScriptedSlot, "judging_s", 1.0)
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=100)
    neighbour = held(pool, slots, asked)
    flood = [pool.submit(asked(f"flood {number}"), run="a") for number in range(50)]
    others = [pool.submit(asked(f"other {number}"), run="b") for number in range(2)]
    slots[0].may_go_on.set()
    assert all(answer.result(20).passed for answer in (neighbour, *flood, *others))
    assert {slots[0].judged.index(f"other {number}") for number in range(2)} <= {1, 2, 3, 4}
    assert pool.close(10) is True


def test_run_that_fills_the_queue_makes_room_for_another_and_is_told_to_come_again(slots, asked):
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=4)
    neighbour = held(pool, slots, asked)
    flood = [pool.submit(asked(f"flood {number}"), run="a") for number in range(4)]
    with pytest.raises(QueueFull, match="try again in 1 s"):
        pool.submit(asked("one too many"), run="a")
    other = pool.submit(asked("other"), run="b")
    with pytest.raises(QueueFull, match="try again in 1 s"):
        flood[-1].result(0)
    assert pool.queued == 4
    slots[0].may_go_on.set()
    assert all(answer.result(20).passed for answer in (neighbour, *flood[:-1], other))
    assert pool.submit(asked("flood 3"), run="a").result(20).passed
    assert pool.close(10) is True


def test_oldest_wait_is_that_of_what_waits_and_not_of_what_is_judged(slots, asked):
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    assert pool.oldest_wait_s == 0
    held(pool, slots, asked)
    time.sleep(0.05)
    assert pool.oldest_wait_s == 0
    waits = [pool.submit(asked(name), run=name) for name in ("a", "b")]
    time.sleep(0.05)
    assert 0.05 <= pool.oldest_wait_s < 20
    slots[0].may_go_on.set()
    assert all(answer.result(20).passed for answer in waits)
    assert pool.oldest_wait_s == 0
    assert pool.close(10) is True


def test_what_took_no_slot_is_charged_to_nobody(slots, asked, monkeypatch):
    charged, done = [], FairQueue.done

    def note(queue, run, *times, judged=True):
        charged.append((run, judged))
        done(queue, run, *times, judged=judged)

    monkeypatch.setattr(FairQueue, "done", note)
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    neighbour = held(pool, slots, asked)
    late = pool.submit(asked("late", deadline_s=0.001), run="late")
    time.sleep(0.01)
    slots[0].may_go_on.set()
    with pytest.raises(Overdue):
        late.result(20)
    assert neighbour.result(20).passed
    assert pool.close(10) is True
    assert [judged for run, judged in charged if run == "late"] == [False]
    assert [judged for run, judged in charged if run != "late"] == [True]


def test_what_is_handed_on_has_waited_since_it_came(slots, asked, monkeypatch):
    handed, put_back, error_answer = [], FairQueue.put_back, ScriptedSlot.error_answer

    def note(queue, run, work):
        handed.append(work.queued_at)
        put_back(queue, run, work)

    def late(slot, *rest):
        time.sleep(0.1)
        return error_answer(slot, *rest)

    monkeypatch.setattr(FairQueue, "put_back", note)
    monkeypatch.setattr(ScriptedSlot, "error_answer", late)
    spent = []
    observer = Observer(spent=lambda phase, seconds: spent.append(phase))
    pool = Pool(ZygoteConfig(), 2, "w", max_queued=10, observer=observer)
    wait_until(lambda: len(slots) == 2 and all(slot.ensured for slot in slots))
    answer = pool.submit(asked("broken", "defect"))
    submitted = time.monotonic()
    assert answer.result(20).passed is None
    assert len(handed) == 1
    assert handed[0] <= submitted
    assert spent == [Phase.QUEUE]  # once
    assert pool.close(10) is True
