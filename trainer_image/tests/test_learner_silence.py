"""Of ranks that do not answer it is said where they stand: of hundreds that wait for one, that one first."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from deepcoder_trainer.learner import hang_report
from deepcoder_trainer.thread_stacks import ActiveCall, ThreadStacks, records_calls, thread_stacks


@records_calls
class Waiting:
    """Answers a call when it is let go."""

    def __init__(self) -> None:
        self.entered, self.let_go = threading.Event(), threading.Event()
        importing: dict[str, Any] = {}
        exec(compile("def within(work): return work()", "<frozen importlib._bootstrap>", "exec"), importing)
        self._within_an_import = importing["within"]

    def work_for_another(self, token: str) -> int:
        return self.work(token)

    def work(self, token: str) -> int:
        assert token
        return self._within_an_import(partial(self._wait_for_the_others, secret=token))

    def _wait_for_the_others(self, secret: str) -> int:
        self.entered.set()
        assert self.let_go.wait(60)
        return len(secret)


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    """One whose call another thread is at."""
    rank = Waiting()
    thread = threading.Thread(target=rank.work, args=("hf_abc123",), name="compute")
    thread.start()
    assert rank.entered.wait(60)
    yield rank
    rank.let_go.set()
    thread.join()


@pytest.mark.usefixtures("waiting")
def test_a_process_says_at_which_call_its_threads_are_and_where_and_none_of_their_values() -> None:
    found = thread_stacks()
    [place] = found.places
    assert (place.call, place.at) == ("work", "no line of ours"), "tests are none of the package's"
    assert 0 <= place.seconds < 3600
    first, *frames = found.stacks.splitlines()
    assert first == "thread compute, which answers work:"
    assert "threading.py" in frames[0], "the innermost first"
    assert re.search(r"tests/test_learner_silence\.py:\d+ in _wait_for_the_others", found.stacks)
    assert "importlib" not in found.stacks, "of what an import is within, only the files"
    assert "hf_abc123" not in found.stacks


def test_what_is_told_of_threads_is_bounded(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepcoder_trainer.thread_stacks.MOST_FRAMES", 2)
    monkeypatch.setattr("deepcoder_trainer.thread_stacks.MOST_THREADS", 1)
    assert len(thread_stacks().stacks.splitlines()) == 3


def test_a_call_that_has_been_answered_is_told_no_more_even_where_it_failed() -> None:
    with pytest.raises(AssertionError):
        Waiting().work("")
    assert thread_stacks().places == ()


def test_a_call_that_is_answered_by_way_of_another_is_told_by_its_own_name() -> None:
    rank = Waiting()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(rank.work_for_another, "hf_abc123")
        assert rank.entered.wait(60)
        told = [place.call for place in thread_stacks().places]
        rank.let_go.set()
        assert answer.result(60) == len("hf_abc123")
    assert told == ["work_for_another"]
    assert thread_stacks().places == ()


def at(call: str, seconds: float, line: str) -> ThreadStacks:
    return ThreadStacks((ActiveCall(call, seconds, line),), f"stack of {line}")


def test_the_place_of_the_fewest_ranks_is_told_first_and_each_place_once() -> None:
    found: dict[int, ThreadStacks | None] = {
        rank: at("train", 60.0 + rank, "rank.py:7 in _whole") for rank in range(256)
    }
    found[17] = at("train", 61, "model.py:5 in forward")
    assert hang_report.places(found) == (
        "rank 17 in train for 61 s at model.py:5 in forward; "
        "ranks 0-16, 18-255 in train for 315 s at rank.py:7 in _whole"
    )
    assert hang_report.stacks(found) == [
        "rank 17, of rank 17:\nstack of model.py:5 in forward",
        "ranks 0-16, 18-255, of rank 0:\nstack of rank.py:7 in _whole",
    ]


def test_ranks_that_say_nothing_and_ranks_that_are_at_nothing_are_told_apart() -> None:
    both = ThreadStacks((ActiveCall("train", 5, "a.py:1 in f"), ActiveCall("upload", 9, "b.py:2 in g")), "")
    told = hang_report.places({0: None, 1: ThreadStacks((), ""), 2: both})
    assert "rank 0 not saying where" in told
    assert "rank 1 at no call" in told
    assert "rank 2 in train for 5 s at a.py:1 in f and in upload for 9 s at b.py:2 in g" in told


def test_ranks_that_all_stand_elsewhere_fill_no_message() -> None:
    told = hang_report.places({rank: at("train", 1, f"a.py:{rank} in f") for rank in range(300)})
    assert told.endswith("; ranks 4-299 elsewhere")
    assert len(told) < 400
    assert len(hang_report.stacks({rank: at("train", 1, f"a.py:{rank} in f") for rank in range(300)})) == 4
