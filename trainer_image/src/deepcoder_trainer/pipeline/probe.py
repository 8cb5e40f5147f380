"""Checks during a run whether samplers give tokens the same probabilities as the learner.

After an attempt's first push, and after every tenth step, every sampler with the new weights is asked for a few short
responses, whatever its load. Before the learner trains again, it scores the responses that have arrived with the same
weights. The difference of log-probabilities is about 1e-6 in float32, some tenths in bfloat16, and far more after a
faulty update. Probes have their own seeds and are not part of any checkpoint.

The loop does not wait for the answers. A response that is missing when the learner's turn comes is skipped, for example
because the sampler is full or was lost. That is not a failure of the run: the round reports on the other samplers, and
the next round follows after twice the number of steps. A late response is dropped. In deterministic mode a late probe
would share engine steps with the next samples, so there each round is waited for while nothing else is sampled.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from deepcoder_contracts.recipe import Recipe
from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.problems.prompt import EncodedProblem
from deepcoder_trainer.seeds import seed
from deepcoder_trainer.types import Batch, Generation, GenerationRequest, Group, Learner, Outcome, Sample

log = logging.getLogger(__name__)

EVERY_STEPS = 10
"""Steps from one probe to the next."""
RAREST_STEPS = 160
"""Largest number of steps between probes, after rounds that missed a sampler."""
LEAST = 4
"""Number of responses in a probe. With more samplers, each gives one."""
TOKENS = 16
"""Largest number of tokens in each response, if the stage allows as many."""

Ask = Callable[[GenerationRequest], Awaitable[Generation]]


class Samplers(Protocol):
    """The samplers of an attempt, each by itself (see `SamplerGroup`)."""

    def each(self) -> Sequence[Ask]:
        """Return one function per sampler with the newest weights, which samples on it alone. Raises `SamplerLost`."""
        ...


@dataclass(frozen=True)
class _Round:
    """The requests after `step`: one task per sampler."""

    step: int
    version: int
    asked: Sequence[asyncio.Task[list[Sample]]]


class Probe:
    """Makes the probes of one stage's loop."""

    def __init__(
        self, recipe: Recipe, problems: Sequence[EncodedProblem], samplers: Samplers, limit: int = TOKENS
    ) -> None:
        """`limit` is the response limit of the stage, in tokens."""
        self._recipe = recipe
        self._problems = problems
        self._samplers = samplers
        self._tokens = min(TOKENS, limit)
        self._round: _Round | None = None
        self._due = 0
        self._interval = EVERY_STEPS

    def due(self, step: int) -> bool:
        """Whether a probe is due after the stage's `step`."""
        return step >= self._due

    async def begin(self, step: int, version: int) -> None:
        """Start a probe after the stage's `step`, when the samplers have the weights of `version`."""
        each = self._samplers.each()
        responses = math.ceil(LEAST / max(1, len(each)))
        asked = [
            asyncio.create_task(self._ask(ask, version, range(i * responses, (i + 1) * responses)))
            for i, ask in enumerate(each)
        ]
        self._round, self._due = _Round(step, version, asked), self._next(step)
        if self._recipe.deterministic and asked:
            await asyncio.wait(asked)

    async def end(self) -> None:
        """End the requests, because the learner's turn comes or the loop ends. Responses so far can be scored."""
        if self._round is not None:
            for task in self._round.asked:
                task.cancel()
            await asyncio.gather(*self._round.asked, return_exceptions=True)

    @property
    def open(self) -> bool:
        """Whether a round has not been scored yet."""
        return self._round is not None

    async def figures(self, learner: Learner) -> dict[str, float]:
        """Return the metrics of the round since the last call, after `end`, scored with the same weights.

        Raises errors of the probe itself, such as a request that a sampler refuses.
        """
        ended, self._round = self._round, None
        if ended is None:
            return {}
        answered = []
        for task in ended.asked:
            if task.cancelled() or isinstance(task.exception(), SamplerLost):
                continue
            answered.append(task.result())
        missed = len(ended.asked) - len(answered)
        self._interval = min(RAREST_STEPS, 2 * self._interval) if missed or not answered else EVERY_STEPS
        self._due = self._next(ended.step)
        if missed or not answered:
            log.info("version %d: %d of %d samplers were probed", ended.version, len(answered), len(ended.asked))
        samples = tuple(sample for of_one in answered for sample in of_one)
        told = {"sync_samplers_probed": float(len(answered))}
        if not samples:
            return told
        batch = Batch(ended.step, (Group(0, "probe", ended.version, samples),))
        return told | summary(await learner.gaps(batch), self._recipe)

    def _next(self, step: int) -> int:
        return (step // self._interval + 1) * self._interval

    async def _ask(self, ask: Ask, version: int, indices: Sequence[int]) -> list[Sample]:
        """Return one sampler's responses, those with `indices` of the round, requested at the same time."""
        answers = await asyncio.gather(*(ask(self._request(version, i)) for i in indices))
        # With a positive reward, truncated responses are not left out of the loss, so they are scored, too.
        outcome = Outcome(1.0, "probe", 0.0)
        return [
            Sample(0, i, self._problem(i).prompt_ids, answer, outcome, self._tokens)
            for i, answer in zip(indices, answers, strict=True)
        ]

    def _request(self, version: int, index: int) -> GenerationRequest:
        return GenerationRequest(
            request_id=f"probe/{version}/{index}",
            prompt_ids=self._problem(index).prompt_ids,
            max_tokens=self._tokens,
            temperature=self._recipe.temperature,
            seed=seed(self._recipe.seed, "probe", index),
        )

    def _problem(self, index: int) -> EncodedProblem:
        return self._problems[index % len(self._problems)]


def summary(gaps: Sequence[float], recipe: Recipe) -> dict[str, float]:
    """Return metrics of log-probability differences, learner minus sampler. NaN counts as the largest."""
    found = np.nan_to_num(np.asarray(gaps, np.float64), nan=np.inf, posinf=np.inf, neginf=-np.inf)
    sizes = np.sort(np.abs(found))
    with np.errstate(over="ignore"):
        ratios = np.exp(found)
    outside = (ratios < 1 - recipe.clip_low) | (ratios > 1 + recipe.clip_high)
    return {
        "sync_logprob_gap_max": float(sizes[-1]),
        # A value of the sample, not interpolated, because one of the neighbours may be infinite.
        "sync_logprob_gap_p95": float(sizes[math.ceil(0.95 * len(sizes)) - 1]),
        "sync_outside_clip_ratio": float(np.mean(outside)),
    }
