"""What is read of a process to tell how long others kept it from running, from a /proc that the test writes."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepcoder_sandbox.worker import starvation
from deepcoder_sandbox.worker.starvation import Starvation

S = 1_000_000_000


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Process 7, its threads' states and waits, and the time, which all are set by the test."""
    told = SimpleNamespace(now=100.0, used_s=0.0, share=b"\0\0")
    monkeypatch.setattr(time, "monotonic", lambda: told.now)
    monkeypatch.setattr(os, "urandom", lambda size: told.share[:size])
    proc = os.open(tmp_path, os.O_PATH)

    def thread(number, state, waited_ns):
        folder = tmp_path / "7" / "task" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stat").write_text(f"{number} (a R) D (b) {state} 1 1 1")
        (folder / "schedstat").write_text(f"5 {waited_ns} 8\n")

    def follow(limit_s=60.0):
        told.followed = Starvation(7, lambda: told.used_s, limit_s, told.now, proc)
        return told.followed

    def sample(seconds):
        told.now += seconds
        told.followed.sample_at = told.now
        told.followed.sample()

    told.thread, told.follow, told.sample = thread, follow, sample
    yield told
    os.close(proc)


def test_states_and_waits_are_read_whatever_the_threads_are_called(process, monkeypatch):
    for number, state in ((7, "S"), (8, "R"), (9, "D")):
        process.thread(number, state, number * S)
    followed = process.follow()
    process.now += 60.0
    assert sorted(followed.states()) == ["D", "R", "S"]
    assert followed.seconds() == 9.0  # the longest of them
    monkeypatch.setattr(starvation, "_MOST_THREADS", 2)
    assert len(followed.states()) == 2
    assert "R" in Starvation(os.getpid(), time.process_time, 60.0, 100.0).states()  # in the usual /proc


def test_thread_that_is_gone_when_it_is_read_or_that_the_kernel_tells_nothing_of_is_left_out(process, tmp_path):
    process.thread(7, "S", 2 * S)
    (tmp_path / "7" / "task" / "8").mkdir()
    process.thread(9, "D", 2 * S)
    for name in ("stat", "schedstat"):
        (tmp_path / "7" / "task" / "9" / name).write_text("")
    followed, opened = process.follow(), len(list(Path("/proc/self/fd").iterdir()))
    process.now += 60.0
    assert (followed.states(), followed.seconds()) == ("S", 2.0)
    assert len(list(Path("/proc/self/fd").iterdir())) <= opened  # less, if an object of another test is freed meanwhile


@pytest.mark.parametrize(("limit_s", "mean_s"), [(60.0, 0.1), (1.0, 0.02), (0.01, 0.005)])
def test_samples_are_some_fifty_a_limit_and_at_least_half_a_pause_apart(process, limit_s, mean_s):
    assert process.follow(limit_s).sample_at == pytest.approx(process.now + 0.5 * mean_s)
    process.share = b"\xff\xff"
    process.followed.draw()
    assert process.followed.sample_at == pytest.approx(process.now + 1.5 * mean_s)


def test_each_sample_stands_for_the_time_since_the_one_before(process):
    process.thread(7, "R", 3 * S)
    process.thread(8, "R", 3 * S)
    process.follow()
    for _ in range(2):
        process.sample(2.0)
    assert process.followed.seconds() == 4.0  # of a sum of 6
    process.sample(4.0)
    assert process.followed.seconds() == 6.0


def test_nothing_from_before_the_mark_counts(process):
    process.thread(7, "R", 0)
    process.thread(8, "R", 0)
    process.follow()
    process.sample(10.0)
    process.now += 10.0
    process.followed.mark()
    process.thread(7, "R", 8 * S)
    process.thread(8, "R", 8 * S)
    process.now += 2.0
    assert process.followed.seconds() == 2.0  # no more has passed
    process.sample(9.0)
    assert process.followed.seconds() == 11.0
    process.followed.mark()
    process.thread(7, "D", 8 * S)
    process.thread(8, "S", 8 * S)
    process.sample(4.0)
    process.now += 16.0
    assert process.followed.seconds() == 4.0


def test_sample_that_took_long_says_nothing_of_what_ran_meanwhile(process, monkeypatch):
    process.thread(7, "R", S)
    process.thread(8, "R", S)
    followed, slow_s = process.follow(), 0.004

    def states():
        process.now += slow_s
        process.used_s += slow_s
        return "RR"

    monkeypatch.setattr(followed, "states", states)
    process.sample(8.0)
    assert followed.seconds() == 1.0  # one thread's alone: the process ran
    slow_s = 0.006
    process.sample(8.0)
    assert followed.seconds() == 2.0


def test_thread_that_ends_before_it_is_read_keeps_what_it_had_waited(process):
    process.thread(7, "S", 5 * S)
    process.follow()
    process.now += 10.0
    assert process.followed.seconds() == 5.0
    process.thread(7, "Z", 0)
    assert process.followed.seconds() == 5.0


def test_threads_that_ran_longer_than_time_passed_have_not_waited(process):
    process.thread(7, "R", 5 * S)
    process.follow()
    process.now += 10.0
    process.used_s = 20.0
    assert process.followed.seconds() == 0.0


def test_time_that_a_process_ran_or_waited_is_not_taken_for_held(process):
    process.thread(7, "D", 0)
    process.follow()
    process.sample(10.0)
    process.thread(7, "D", 3 * S)
    process.used_s = 6.0
    assert process.followed.seconds() == 4.0  # all but what it ran
