"""What judging adds to long tests, as a share of the program's own CPU time: a part of `judge.py`.

A share of a few percent is less than a machine's speed may change between two turns of minutes. So turns are short here
(one submission on every core at once), and the program alone and each scoring mode take them in every order in turn.
What counts is the median over the rounds of what a turn cost more than the program alone in the
same round. Every contender runs as many programs at once, since one that leaves a core idle has the others' share of
what both cores have in common. Each is warm: nothing has to be taken off.

A judge whose other core idles pays more: on a virtual machine one that wakes after 200 ms finds its caches cold, which
cost 1 to 5 ms a test where this was written (2026-11-30).
"""

from __future__ import annotations

import contextlib
import resource
import statistics
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice, permutations
from multiprocessing import get_context
from typing import Final

import psutil
from judge_workload import Cell

from deepcoder_contracts.judge import Scoring
from deepcoder_sandbox.pool import Pool
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.zygote_process import ZygoteConfig

PATIENCE_SECONDS: Final = 600
BASE: Final = "alone"

Turn = Callable[[Submission], bool]
"""Runs a submission on every core at once; returns whether each of them passed."""


@dataclass(frozen=True)
class Overhead:
    """Shares of the program's own CPU time, over all rounds: -0.01 is one percent less than the program alone."""

    median: float
    lower: float
    """A quarter of the rounds had less."""
    upper: float
    """A quarter had more."""


def cpu_of_the_tree() -> float:
    """CPU seconds of this process and all below it, the ended ones too; each process's in ticks of 10 ms."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    seconds = own.ru_utime + own.ru_stime
    this = psutil.Process()
    ended = this.cpu_times()
    seconds += ended.children_user + ended.children_system
    for process in this.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a runner's end: what it had used meanwhile is lost
            seconds += sum(process.cpu_times()[:4])
    return seconds


def overheads(cell: Cell, base: Turn, judges: Mapping[str, Turn], rounds: int) -> dict[str, Overhead | None]:
    """Return what each judge adds to the right programs of a cell; None where one did not pass."""
    right = [each for each, passes in zip(cell.submissions, cell.expected, strict=True) if passes]
    turns = {BASE: base, **judges}
    names = list(turns)
    void = {name for name in names if not turns[name](right[0])}  # and whatever is started once is started
    shares: dict[str, list[float]] = {name: [] for name in judges}
    for order, submission in islice(zip(cycle(permutations(names)), cycle(right), strict=False), rounds):
        spent = {}
        for name in order:
            before = cpu_of_the_tree()
            if not turns[name](submission):
                void.add(name)
            spent[name] = cpu_of_the_tree() - before
        for name, seen in shares.items():
            seen.append(spent[name] / spent[BASE] - 1)
    return {name: None if {name, BASE} & void else _overhead(seen) for name, seen in shares.items()}


def _overhead(shares: list[float]) -> Overhead:
    lower, median, upper = statistics.quantiles(shares, n=4, method="inclusive")
    return Overhead(median, lower, upper)


@contextlib.contextmanager
def alone(passes: Callable[[Submission], bool], at_once: int) -> Iterator[Turn]:
    """Yield what calls `passes`, a function of a module, in `at_once` processes."""
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as processes:

        def turn(submission: Submission) -> bool:
            answers = [processes.submit(passes, submission) for _ in range(at_once)]
            return all(answer.result(PATIENCE_SECONDS) for answer in answers)

        yield turn


@contextlib.contextmanager
def judge(config: ZygoteConfig, scoring: Scoring, at_once: int) -> Iterator[Turn]:
    """Yield a judge of `at_once` slots."""
    pool = Pool(config, at_once, "bench", max_queued=at_once)

    def turn(submission: Submission) -> bool:
        asked = submission.request.model_copy(update={"scoring": scoring})
        answers = [pool.submit(Submission(asked, submission.tests)) for _ in range(at_once)]
        return all(answer.result(PATIENCE_SECONDS).passed for answer in answers)

    try:
        yield turn
    finally:
        pool.close(PATIENCE_SECONDS)
