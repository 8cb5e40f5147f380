"""The rollout of a group: samples all responses of a problem and judges each of them.

Judging starts as soon as a response is complete, while others of its group are still being sampled. So the judges work
during the long tail of generation instead of after it. Generation is never retried here; requests of a lost sampler
move within the sampler group. The judge client retries judging, and a run that resumes after its judges failed judges
once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from deepcoder_trainer.problems.prompt import EncodedProblem
from deepcoder_trainer.rollout.in_flight import InFlight
from deepcoder_trainer.rollout.reward import Reward
from deepcoder_trainer.seeds import seed
from deepcoder_trainer.types import Generation, GenerationRequest, Group, Sample, Sampler, Wave


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled."""

    run_seed: int
    group_size: int
    max_tokens: int
    """Response limit."""
    temperature: float
    top_p: float = 1.0
    purpose: str = "sampling"
    """Separates the seeds of training and of each evaluation."""
    seeded: bool = False
    """Whether each response has its own seed, so that sampling can be repeated. This is slower: at each step, vLLM
    samples seeded requests one by one. Requests of a wave are always seeded."""


@dataclass(frozen=True)
class Admitted:
    """A group that was admitted and is to be sampled."""

    group_id: int
    version: int
    """Version of the weights at admission."""
    wave: tuple[str, int, int] | None = None
    """Deterministic mode: name of the wave, position of the group in it, number of its groups."""
    draw: int = 0
    """Number of problems that were drawn for this slot before (recipe.refill)."""


class Rollout:
    """Samples and judges groups. Its only state is the number of samples in flight."""

    def __init__(self, sampler: Sampler, reward: Reward, sampling: Sampling) -> None:
        self._sampler = sampler
        self._reward = reward
        self._sampling = sampling
        self.sampling = InFlight()
        """Samples that are being sampled."""
        self.judging = InFlight()
        """Samples that are sampled but not judged yet."""

    async def room(self, capacity: Callable[[], int]) -> None:
        """Wait until no more samples wait for judges than `capacity()`, or than one group has if that is more.

        `capacity` is the number that judges judge at once. Further samples would only wait and become stale.
        """
        await self.judging.room(lambda: max(self._sampling.group_size, capacity()))

    async def group(
        self, admitted: Admitted, problem: EncodedProblem, on_sampled: Callable[[], None] = lambda: None
    ) -> Group:
        """Sample and judge all responses of a problem. `on_sampled` is called whenever one of them is sampled."""
        async with asyncio.TaskGroup() as tasks:
            samples = [
                tasks.create_task(self._sample(admitted, index, problem, on_sampled))
                for index in range(self._sampling.group_size)
            ]
        return Group(
            group_id=admitted.group_id,
            problem_id=problem.problem.id,
            admitted_version=admitted.version,
            samples=tuple(task.result() for task in samples),
            draw=admitted.draw,
        )

    async def judge_again(self, group: Group, problem: EncodedProblem) -> Group:
        """Return the group after judging those of its samples again that no judge could judge before."""

        async def judged(sample: Sample) -> Sample:
            if sample.outcome.reward is not None:
                return sample
            key = self._key(sample.group_id, group.draw, sample.index)
            return replace(sample, outcome=await self._reward(problem.problem, sample.generation.text, key))

        async with asyncio.TaskGroup() as tasks:
            samples = [tasks.create_task(judged(sample)) for sample in group.samples]
        return replace(group, samples=tuple(task.result() for task in samples))

    def _key(self, group_id: int, draw: int, index: int) -> str:
        place = f"{group_id}.{draw}" if draw else str(group_id)
        return f"{self._sampling.purpose}/{place}/{index}"

    async def _sample(
        self, admitted: Admitted, index: int, problem: EncodedProblem, sampled: Callable[[], None]
    ) -> Sample:
        key = self._key(admitted.group_id, admitted.draw, index)
        with self.sampling.one():
            generation: Generation = await self._sampler.generate(self._request(admitted, index, key, problem))
        sampled()
        with self.judging.one():
            outcome = await self._reward(problem.problem, generation.text, key)
        return Sample(
            group_id=admitted.group_id,
            index=index,
            prompt_ids=problem.prompt_ids,
            generation=generation,
            outcome=outcome,
            limit=self._sampling.max_tokens,
        )

    def _request(self, admitted: Admitted, index: int, key: str, problem: EncodedProblem) -> GenerationRequest:
        s = self._sampling
        place = (admitted.group_id, admitted.draw) if admitted.draw else (admitted.group_id,)
        wave = None
        if admitted.wave is not None:
            name, position, groups = admitted.wave
            wave = Wave(name, position * s.group_size + index, groups * s.group_size)
        return GenerationRequest(
            request_id=key,
            prompt_ids=problem.prompt_ids,
            max_tokens=s.max_tokens,
            temperature=s.temperature,
            top_p=s.top_p,
            seed=seed(s.run_seed, s.purpose, *place, index) if s.seeded or wave is not None else None,
            wave=wave,
        )
