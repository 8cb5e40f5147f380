"""What one bucket that does not answer costs the others: nothing, however long its threads go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from web_fakes import until

from deepcoder_web import storage_threads
from deepcoder_web.storage_threads import AT_ONCE, OF_NAMESPACE, Budget, Busy, Late, StorageThreads


@pytest.fixture
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Nobody waits for long, until this is undone: what is to be answered has a busy machine's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage_threads, "WAIT_SECONDS", 0.2)
        patch.setattr(storage_threads, "DEADLINE_SECONDS", 0.2)
        yield patch


async def test_a_question_that_was_given_up_holds_its_place_until_its_thread_ends(quick: pytest.MonkeyPatch) -> None:
    ask, end = StorageThreads(), threading.Event()
    stuck = [asyncio.create_task(ask.ask("team", "stuck", lambda: end.wait(60))) for _ in range(AT_ONCE)]
    for task in stuck:
        with pytest.raises(Late):
            await task
    with pytest.raises(Busy):
        await ask.ask("team", "stuck", lambda: 1)
    quick.undo()
    assert await ask.ask("team", "other", lambda: 2) == 2
    end.set()
    await until(lambda: not ask._places, "the threads give their places back")
    assert await ask.ask("team", "stuck", lambda: 3) == 3


async def test_all_stuck_runs_of_a_namespace_leave_threads_to_the_others(quick: pytest.MonkeyPatch) -> None:
    ask, end = StorageThreads(), threading.Event()
    asked = [ask.ask("team", f"run-{number % 8}", lambda: end.wait(60)) for number in range(8 * AT_ONCE)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, Late) for answer in answers) == OF_NAMESPACE
    assert sum(isinstance(answer, Busy) for answer in answers) == len(asked) - OF_NAMESPACE
    quick.undo()
    assert await ask.ask("other", "run", lambda: 2) == 2
    end.set()
    await until(lambda: not ask._places, "the threads give their places back")


async def test_what_a_question_raises_is_raised_and_its_place_is_free() -> None:
    ask = StorageThreads()
    for _ in range(AT_ONCE + 1):
        with pytest.raises(ZeroDivisionError):
            await ask.ask("team", "run", lambda: 1 / 0)
    await until(lambda: not ask._places, "the threads give their places back")


def test_what_is_read_at_once_is_bounded_and_given_back() -> None:
    budget = Budget(10, patience=0.05)
    with budget.take(6):
        with pytest.raises(Busy), budget.take(6):
            pass
        with budget.take(4):
            pass
    with budget.take(50):
        pass
