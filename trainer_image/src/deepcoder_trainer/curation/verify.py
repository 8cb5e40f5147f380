"""Checks official solutions with the judge and answers with the verifier; keeps a cluster's first that passes.

The programs of one cluster are judged one after the other. Clusters are judged in parallel, as many as the judges say
they can take, so that no slot idles and no more than that many problems' tests are in memory. A verdict is requested
only if the journal has none. A failed judge gives no verdict: such problems are counted separately, nothing is written
for them, and the command has to be run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from deepcoder_contracts.judge import MAX_CODE_BYTES
from deepcoder_trainer.curation import filters
from deepcoder_trainer.curation.duplicates import Cluster
from deepcoder_trainer.curation.filters import Settings
from deepcoder_trainer.curation.journal import Journal, verdict_key
from deepcoder_trainer.curation.prepare import Candidate
from deepcoder_trainer.curation.spool import Spool
from deepcoder_trainer.judge.backend import Judge
from deepcoder_trainer.judge.submission import JudgedProblem
from deepcoder_trainer.problems.record import Record
from deepcoder_trainer.problems.rows import RowError, check_judgeable
from deepcoder_trainer.rollout.answers import AnswerVerifier

_FEWEST = 4
"""Number of clusters in flight before a judge has reported its capacity."""
_GIVE_UP = 8
"""Number of unjudged clusters after which no more are started: each has waited for judges up to its deadline."""


@dataclass(frozen=True)
class Kept:
    """A problem of the curated set."""

    index: int
    solution: int | None
    """Index of the official solution that passed; None if the problem is kept without one."""


@dataclass(frozen=True)
class Refused:
    """A problem that is not kept, with the filter that drops it and the reason."""

    index: int
    filter: str
    reason: str


@dataclass
class Verified:
    """The result of verifying all clusters."""

    kept: list[Kept] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    unjudged: list[int] = field(default_factory=list)
    """Problems that no judge could judge, later ones of their clusters, and those of clusters that were not started."""
    judged: int = 0
    """Number of programs that were judged now."""
    known: int = 0
    """Number of verdicts that the journal had."""


class Verification:
    """Verifies clusters of problems with judge, verifier and journal."""

    def __init__(
        self, judge: Judge, answers: AnswerVerifier, journal: Journal, spool: Spool, settings: Settings
    ) -> None:
        self._judge, self._answers, self._journal, self._spool, self._settings = (
            judge,
            answers,
            journal,
            spool,
            settings,
        )
        self._under_way: dict[str, asyncio.Task[bool | None]] = {}
        self._result = Verified()
        self._failed = 0

    async def run(
        self, candidates: Sequence[Candidate], clusters: Sequence[Cluster], done: Callable[[], None]
    ) -> Verified:
        """Verify every cluster. `done` is called after each."""
        waiting = iter(clusters)
        tasks: set[asyncio.Task[None]] = set()
        try:
            more = True
            while more or tasks:
                while more and len(tasks) < max(_FEWEST, self._judge.capacity):
                    cluster = next(waiting, None) if self._failed < _GIVE_UP else None
                    more = cluster is not None
                    if cluster is not None:
                        tasks.add(asyncio.create_task(self._cluster(candidates, cluster)))
                if tasks:
                    ended, unfinished = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    for task in ended:
                        task.result()
                        done()
                    tasks = unfinished  # assigned only now: if one failed, the others are cancelled and awaited below
            self._result.unjudged += [index for cluster in waiting for index in cluster.members]
        finally:
            left: list[asyncio.Task[Any]] = [*tasks, *self._under_way.values()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        self._result.kept.sort(key=lambda k: k.index)
        self._result.refused.sort(key=lambda r: r.index)
        return self._result

    async def _cluster(self, candidates: Sequence[Candidate], cluster: Cluster) -> None:
        kept: Kept | None = None
        for position, index in enumerate(cluster.members):
            if kept is not None:
                self._result.refused.append(_duplicate(candidates, cluster, index, kept))
                continue
            outcome = await self._one(index, candidates[index])
            if outcome is None:
                self._failed += 1
                self._result.unjudged.extend(cluster.members[position:])
                return
            if isinstance(outcome, Kept):
                kept = outcome
                self._result.kept.append(outcome)
            else:
                self._result.refused.append(outcome)

    async def _one(self, index: int, candidate: Candidate) -> Kept | Refused | None:
        """Decide on a problem; None: it could not be judged."""
        record = self._spool.read(candidate.span)
        if record.answer is not None and (read := await self._answers.reads(record.answer)) is not True:
            reason = f"nothing but the same text as {record.answer!r} would be right"
            return None if read is None else Refused(index, filters.UNREADABLE_ANSWER, reason)
        programs = [s for s in record.solutions if "\0" not in s and len(s.encode(errors="replace")) <= MAX_CODE_BYTES]
        if not programs or not record.tests:
            if self._settings.keep_unverified or not record.solutions_expected:
                return Kept(index, None)
            return Refused(index, filters.NO_SOLUTION, "there is no official solution to verify it by")
        judged = _Judged(record)
        try:
            check_judgeable(judged.problem)
        except RowError as error:  # judgeable with its own scoring, but not strictly; the judge would refuse it
            return Refused(index, filters.FAILS, f"{error}, to be compared strictly")
        for program in programs[: self._settings.max_solutions]:
            passed = await self._verdict(judged, program)
            if passed is None:
                return None
            if passed:
                return Kept(index, record.solutions.index(program))
        tried = min(len(programs), self._settings.max_solutions)
        return Refused(
            index, filters.FAILS, f"{tried} of {len(record.solutions)} official solutions tried, none passes"
        )

    async def _verdict(self, judged: _Judged, program: str) -> bool | None:
        key = verdict_key(judged.problem, program)
        if (known := self._journal.get(key)) is not None:
            self._result.known += 1
            return known
        # Two copies of a problem in different clusters may need the same verdict at the same time.
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._ask(judged, program, key))
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(task)

    async def _ask(self, judged: _Judged, program: str, key: str) -> bool | None:
        judgement = await self._judge.judge(judged.submissions.submission(program, f"curate/{key[:32]}"))
        if judgement.response is None:
            return None
        passed = bool(judgement.response.passed)
        await self._journal.put(key, passed, judgement.response.seconds)
        self._result.judged += 1
        return passed


class _Judged:
    """A record in the form in which it is judged. The submission's common part is built on first use."""

    def __init__(self, record: Record) -> None:
        self.problem = record.strict()

    @cached_property
    def submissions(self) -> JudgedProblem:
        """Builds submissions of programs for this problem."""
        return JudgedProblem(self.problem)


def _duplicate(candidates: Sequence[Candidate], cluster: Cluster, index: int, kept: Kept) -> Refused:
    of = candidates[kept.index]
    first = cluster.members[0]
    if cluster.similarity[index] == cluster.similarity[kept.index] == 1.0:
        return Refused(index, filters.EXACT, f"the same statement as {of.id} ({of.place})")
    if kept.index == first:
        return Refused(index, filters.NEAR, f"{cluster.similarity[index]:.0%} the same as {of.id} ({of.place})")
    return Refused(
        index,
        filters.NEAR,
        f"near the same statement {candidates[first].id} as {of.id} ({of.place}), which is kept instead",
    )
