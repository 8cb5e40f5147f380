"""The pool's promises, with slots that do as they are told: what is accepted is answered once, by whoever can."""

import threading
import time
import weakref

import pytest
from scripted_slots import wait_until

from deepcoder_contracts.judge import Verdict
from deepcoder_sandbox import pool as pools
from deepcoder_sandbox import slot as slot_module
from deepcoder_sandbox.observer import Observer, Phase
from deepcoder_sandbox.pool import Draining, Pool
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteFailed, ZygoteProcess


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
    wait_until(lambda: not pool._waiting._runs)  # or its run would pay for it for ever
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
    assert pool.queued == 0


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


def test_slot_whose_zygote_for_sessions_once_did_not_start_comes_back(make, monkeypatch):
    failures = iter(range(2))  # as many as the first slot's attempts

    def start(config):
        if config.harness and next(failures, None) is not None:
            raise ZygoteFailed("no memory for it at this moment")
        return ZygoteProcess(config)

    monkeypatch.setattr(pools, "_START_AGAIN_S", 0.05)
    monkeypatch.setattr(slot_module, "ZygoteProcess", start)
    pool = Pool(ZygoteConfig(), 2, "w", max_queued=10)
    wait_until(lambda: all(slot.zygote_pid for slot in pool._slots))
    request = make("print(1)", ("", "1"), scoring="livecodebench")
    assert pool.submit(Submission(request, tuple(request.tests))).result(60).passed is True
    wait_until(lambda: not any(slot.failed_starts for slot in pool._slots))  # until then it leaves all to the other
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


def test_judge_fails_since_the_last_of_its_slots_does(slots):
    pool = Pool(ZygoteConfig(), 2, "w", max_queued=10)
    wait_until(lambda: len(slots) == 2 and all(slot.ensured for slot in slots))
    for slot, seconds in zip(slots, (1000, 1), strict=True):
        slot.failed_starts, slot.failing_since = pools._FAILED_STARTS, time.monotonic() - seconds
    assert 1 <= pool.failing_s < 900
    for slot in slots:
        slot.failed_starts, slot.failing_since = 0, None
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
