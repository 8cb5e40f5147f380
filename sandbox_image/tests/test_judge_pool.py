"""The pool's promises, with slots that do as they are told: what is accepted is answered once, by whoever can."""

import threading
import time
import weakref

import pytest

from deepcoder_contracts.judge import JudgeResponse, TestVerdict, Verdict
from deepcoder_sandbox import pool as pools
from deepcoder_sandbox.fair_queue import FairQueue
from deepcoder_sandbox.observer import Observer, Phase
from deepcoder_sandbox.pool import Draining, Overdue, Pool, QueueFull
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteFailed


class ToldSlot:
    """A slot whose programs are names of what is to happen."""

    made: list["ToldSlot"] = []

    def __init__(self, config, worker, observer, recycle_after_runs):
        self.number = len(self.made)
        self.made.append(self)
        self.failed_starts = 0
        self.failing_since = None
        self.judged: list[str] = []
        self.may_go_on = threading.Event()
        self.broken = False
        self.ensured = False

    def ensure_zygote(self):
        if self.broken:
            self.failed_starts += 1
            self.failing_since = self.failing_since or time.monotonic()
            raise ZygoteFailed("broken")
        self.failed_starts, self.failing_since = 0, None
        self.ensured = True

    def judge(self, submission, deadline):
        self.judged.append(submission.request.id)
        if submission.request.code == "wait":
            self.may_go_on.wait(30)
        if submission.request.code == "slow":  # as long as it is given
            while time.monotonic() < deadline:
                time.sleep(0.005)
            return self.error_answer(submission, "the deadline passed", 0.0)
        if submission.request.code == "defect":
            raise RuntimeError("a defect")
        try:
            self.ensure_zygote()
        except ZygoteFailed as failed:
            return self.error_answer(submission, str(failed), 0.0)
        return self._answer(submission, Verdict.PASSED, "")

    def error_answer(self, submission, failure, started):
        return self._answer(submission, Verdict.ERROR, failure)

    def _answer(self, submission, verdict, detail):
        return JudgeResponse(
            id=submission.request.id,
            passed=None if verdict is Verdict.ERROR else True,
            verdicts=[TestVerdict(verdict=verdict, seconds=0.0, detail=detail)],
            seconds=0.0,
            worker=str(self.number),
        )

    def close(self):
        pass


@pytest.fixture
def slots(monkeypatch):
    monkeypatch.setattr(ToldSlot, "made", [])
    monkeypatch.setattr(pools, "Slot", ToldSlot)
    return ToldSlot.made


@pytest.fixture
def asked(make):
    def ask(name, code="pass", **fields):
        request = make(code, id=name, **fields)
        return Submission(request, tuple(request.tests))

    return ask


def wait_until(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_whatever_was_accepted_while_draining_began_is_answered(slots, asked):
    for _ in range(30):
        pool = Pool(ZygoteConfig(), 2, "w", max_queued=10_000)
        accepted = []

        def submit(pool=pool, accepted=accepted):
            try:
                while True:
                    accepted.append(pool.submit(asked("a")))
            except Draining:
                pass

        clients = [threading.Thread(target=submit) for _ in range(4)]
        for client in clients:
            client.start()
        time.sleep(0.002)
        pool.drain()
        for client in clients:
            client.join()
        assert pool.close(30) is True
        assert all(answer.result(0).passed for answer in accepted)


def test_submission_that_is_cancelled_in_the_queue_is_not_judged_and_costs_no_slot(slots, asked):
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    first = pool.submit(asked("first", "wait"))
    wait_until(lambda: pool.busy)
    second, third = pool.submit(asked("second")), pool.submit(asked("third"))
    assert second.cancel()
    assert not first.cancel()
    slots[0].may_go_on.set()
    assert third.result(20).passed is True
    assert first.result(0).passed is True
    assert slots[0].judged == ["first", "third"]
    assert pool.close(10) is True


def test_what_is_not_judged_when_the_time_is_over_is_given_back(slots, asked):
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    under_way, waiting, cancelled = (pool.submit(asked(name, "wait")) for name in ("a", "b", "c"))
    cancelled.cancel()
    wait_until(lambda: pool.busy)
    assert pool.close(0.05) is False
    for answer in (under_way, waiting):
        with pytest.raises(Draining, match="another"):
            answer.result(0)
    slots[0].may_go_on.set()  # and the slot, done at last, has nobody to tell
    wait_until(lambda: not any(thread.is_alive() for thread in pool._threads))
    assert slots[0].judged == ["a"]


def test_what_failed_on_one_slot_is_judged_on_another(slots, asked):
    pool = Pool(ZygoteConfig(), 2, "w", max_queued=10)
    wait_until(lambda: len(slots) == 2 and all(slot.ensured for slot in slots))
    neighbour = pool.submit(asked("neighbour", "wait"))
    wait_until(lambda: any(slot.judged for slot in slots))
    free, busy = sorted(slots, key=lambda slot: len(slot.judged))
    free.broken = True
    answer = pool.submit(asked("failed"))
    wait_until(lambda: free.judged)
    busy.may_go_on.set()
    assert answer.result(20).passed is neighbour.result(20).passed is True
    assert answer.result().worker == str(busy.number)
    assert (free.judged, busy.judged) == (["failed"], ["neighbour", "failed"])
    assert pool.close(10) is True


def test_slot_without_a_zygote_leaves_the_work_to_the_others_and_comes_back(slots, asked, monkeypatch):
    monkeypatch.setattr(pools, "_START_AGAIN_S", 0.05)
    pool = Pool(ZygoteConfig(), 2, "w", max_queued=100)
    slots[0].broken = True
    slots[0].failed_starts = 1
    answers = [pool.submit(asked(str(number))) for number in range(50)]
    assert all(answer.result(20).passed for answer in answers)
    before = len(slots[0].judged)  # at most what it had taken before it broke
    assert before <= 1
    slots[0].broken = False
    wait_until(lambda: not slots[0].failed_starts)
    held = [pool.submit(asked(str(number), "wait")) for number in range(2)]
    wait_until(lambda: pool.busy == 2)
    for slot in slots:
        slot.may_go_on.set()
    assert all(answer.result(20).passed for answer in held)
    assert pool.close(10) is True


def test_error_is_the_answer_where_no_slot_can_judge(slots, asked):
    pool = Pool(ZygoteConfig(), 3, "w", max_queued=10)
    for slot in slots:
        slot.broken = True
    answers = [pool.submit(asked(str(number))).result(20) for number in range(6)]
    assert [answer.passed for answer in answers] == [None] * 6
    assert pool.close(10) is True


def test_judge_fails_only_when_no_slot_works_and_tells_how_many_do(slots, asked, monkeypatch):
    monkeypatch.setattr(pools, "_START_AGAIN_S", 0.01)
    pool = Pool(ZygoteConfig(), 2, "w", max_queued=10)
    slots[0].broken = True
    slots[0].failed_starts = 1
    assert pool.submit(asked("a")).result(20).passed is True  # and wakes whoever is to find itself broken
    wait_until(lambda: pool.working_slots == 1)
    assert pool.failing_s == 0
    slots[1].broken = True
    for name in ("b", "c"):
        assert pool.submit(asked(name)).result(20).passed is None
    wait_until(lambda: pool.working_slots == 0)
    assert pool.failing_s > 0
    slots[0].broken = slots[1].broken = False
    wait_until(lambda: pool.working_slots == 2)
    assert pool.failing_s == 0
    assert pool.close(10) is True


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
    assert not neighbour.done()
    slots[0].may_go_on.set()
    assert neighbour.result(20).passed is waiting.result(20).passed is True
    pool.give_back_overdue(neighbour)  # answered: nothing is left to give back
    assert pool.close(10) is True


def test_judging_that_the_queue_left_too_little_time_is_not_judged_and_no_failure(slots, asked):
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    held(pool, slots, asked)
    behind = pool.submit(asked("behind", "slow", deadline_s=0.4))
    slots[0].may_go_on.set()
    with pytest.raises(Overdue):
        behind.result(20)
    assert pool.submit(asked("alone", "slow", deadline_s=0.1)).result(20).passed is None  # its client's own doing
    assert slots[0].judged == ["neighbour", "behind", "alone"]
    assert pool.close(10) is True


def test_judging_that_takes_longer_than_it_may_is_the_judges_failure_though_it_had_waited(slots, asked, monkeypatch):
    monkeypatch.setattr(pools.limits, "judging_deadline_s", lambda *_: 0.1)
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    held(pool, slots, asked)
    behind = pool.submit(asked("behind", "slow", deadline_s=1))
    slots[0].may_go_on.set()
    assert behind.result(20).passed is None
    assert pool.close(10) is True


def test_deadline_counts_from_when_judging_begins_for_whoever_reads_ahead(slots, asked):
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    held(pool, slots, asked)
    ahead = pool.submit(asked("ahead", deadline_s=0.2), queue_counts=False)
    too_long = pool.submit(asked("too long", "slow", deadline_s=0.2), queue_counts=False)
    time.sleep(0.3)
    slots[0].may_go_on.set()
    assert ahead.result(20).passed is True
    assert too_long.result(20).passed is None
    assert pool.close(10) is True


def test_slot_that_works_again_at_this_moment_is_no_failing_one(slots):
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    wait_until(lambda: slots[0].ensured)
    slots[
        0
    ].failed_starts = pools._FAILED_STARTS  # its thread has cleared the time of its failure, not yet their number
    assert pool.failing_s == 0
    slots[0].failing_since = time.monotonic() - 1
    assert pool.failing_s >= 1
    slots[0].failed_starts, slots[0].failing_since = 0, None
    assert pool.close(10) is True


def test_defect_of_the_judge_is_tried_on_two_slots_and_is_no_verdict(slots, asked):
    pool = Pool(ZygoteConfig(), 2, "w", max_queued=10)
    answer = pool.submit(asked("a", "defect")).result(20)
    assert (answer.passed, answer.verdicts[0].verdict) == (None, Verdict.ERROR)
    assert [slot.judged for slot in slots].count([]) <= 1
    assert sum(len(slot.judged) for slot in slots) == 2
    assert pool.submit(asked("b")).result(20).passed is True
    assert pool.close(10) is True


def test_listener_that_fails_costs_no_answer(slots, asked):
    def fail(submission, answer):
        raise RuntimeError("a full registry")

    spent = []
    observer = Observer(spent=lambda phase, seconds: spent.append(phase), judged=fail)
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10, observer=observer)
    assert [pool.submit(asked(str(number))).result(20).passed for number in range(3)] == [True] * 3
    assert spent == [Phase.QUEUE] * 3
    assert pool.close(10) is True


def test_nothing_of_a_submission_stays_once_it_is_answered(slots, asked):
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=10)
    submission = asked("a")
    gone = weakref.ref(submission)
    assert pool.submit(submission).result(20).passed is True
    del submission
    wait_until(lambda: gone() is None)
    assert pool.close(10) is True


def test_hint_when_to_come_back_follows_what_judging_takes_from_the_first_submission_on(slots, asked):
    pool = Pool(ZygoteConfig(), 1, "w", max_queued=100)
    assert pool.submit(asked("a")).result(20).passed is True
    held = [pool.submit(asked(str(number), "wait")) for number in range(90)]
    wait_until(lambda: pool.busy)
    assert pool.retry_after_s() == 1
    slots[0].may_go_on.set()
    assert all(answer.result(20).passed for answer in held)
    assert pool.close(10) is True


def test_flood_of_one_run_delays_another_by_no_more_than_what_is_under_way(slots, asked):
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
    handed, put_back, error_answer = [], FairQueue.put_back, ToldSlot.error_answer

    def note(queue, run, work):
        handed.append(work.queued_at)
        put_back(queue, run, work)

    def late(slot, *rest):
        time.sleep(0.1)
        return error_answer(slot, *rest)

    monkeypatch.setattr(FairQueue, "put_back", note)
    monkeypatch.setattr(ToldSlot, "error_answer", late)
    pool = Pool(ZygoteConfig(), 2, "w", max_queued=10)
    wait_until(lambda: len(slots) == 2 and all(slot.ensured for slot in slots))
    answer = pool.submit(asked("broken", "defect"))
    submitted = time.monotonic()
    assert answer.result(20).passed is None
    assert len(handed) == 1
    assert handed[0] <= submitted
    assert pool.close(10) is True
