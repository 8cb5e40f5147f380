"""Collects the samples of a problem set: each is sampled, then judged, and written to the journal after either step.

Judging overlaps with sampling: a response goes to the judges as soon as it is complete. Nothing that the journal has is
done again. Samples are requested in the set's order, a bounded number at once, with the responses to a problem
together. A sample on which the judges failed is judged once more at the end, when they have little else to do, because
committed results are final.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from deepcoder_trainer.evaluation.answers import Answer, Answers
from deepcoder_trainer.evaluation.journal import Journal
from deepcoder_trainer.evaluation.problemsets import ProblemSet
from deepcoder_trainer.evaluation.samples import Judged
from deepcoder_trainer.protocols import SandboxUnavailable
from deepcoder_trainer.rollout.reward import Reward
from deepcoder_trainer.types import Outcome

SAMPLED_AT_ONCE = 2048
"""Most responses in flight at the samplers: enough to fill the engines, and a bound on what a lost engine costs."""
UNJUDGED_RATIO = 0.01
"""Largest share of failed judgements at which results are still used."""

Advance = Callable[[int], None]
"""Called with the number of finished samples."""


async def collect_samples(
    problem_set: ProblemSet,
    samples: int,
    answers: Answers,
    reward: Reward,
    journal: Journal | None,
    advance: Advance = lambda done: None,
) -> list[Judged]:
    """Return all samples of a set. Raises SandboxUnavailable if too many were not judged, and what a sampler raises.

    The journal must have been loaded.
    """
    free = asyncio.Semaphore(SAMPLED_AT_ONCE)
    done = 0

    async def judged(group: int, index: int, answer: Answer) -> Judged:
        problem, place = problem_set.problems[group], (group, index)
        outcome = await reward(problem.problem, answer.text, f"evaluation/{problem_set.name}/{group}/{index}")
        if journal is not None:
            journal.judged(place, outcome)
        return Judged(group, index, problem, problem_set.benchmark.facts[problem.problem.id], answer, outcome)

    async def one(group: int, index: int) -> Judged:
        nonlocal done
        problem, place = problem_set.problems[group], (group, index)
        known = journal.known.get(place) if journal is not None else None
        if known is None:
            async with free:
                answer = await answers.answer(problem_set.name, problem, group, index)
            if journal is not None:
                journal.answered(place, answer)
        else:
            answer = known.answer
        if known is not None and known.outcome is not None:
            facts = problem_set.benchmark.facts[problem.problem.id]
            sample = Judged(group, index, problem, facts, answer, known.outcome)
        else:
            sample = await judged(group, index, answer)
        done += 1
        advance(done)
        return sample

    async def once_more(sample: Judged) -> Judged:
        if sample.outcome.reward is not None:
            return sample
        return await judged(sample.group, sample.index, sample.answer)

    try:
        places = [(g, i) for g in range(len(problem_set.problems)) for i in range(samples)]
        found = await _together(one(*place) for place in places)
        _refuse_unjudged(problem_set.name, [s.outcome for s in found])
        return await _together(once_more(s) for s in found)
    finally:
        if journal is not None:
            await journal.flush()


async def _together(calls: Iterable[Coroutine[Any, Any, Judged]]) -> list[Judged]:
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(call) for call in calls]
    return [task.result() for task in running]


def _refuse_unjudged(name: str, outcomes: Sequence[Outcome]) -> None:
    failed = sum(outcome.reward is None for outcome in outcomes)
    if failed > UNJUDGED_RATIO * len(outcomes):
        raise SandboxUnavailable(
            f"judges failed on {failed} of {len(outcomes)} responses of {name}, more than {UNJUDGED_RATIO:.0%}: "
            f"{SandboxUnavailable.WHERE_TO_LOOK}"
        )
