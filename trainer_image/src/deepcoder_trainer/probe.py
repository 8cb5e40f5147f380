"""Do samplers give tokens the probabilities that the learner does? Asked of a run while it goes on.

After an attempt's first push and each tenth step a few short responses to the first problems are sampled with the new
weights, before anything else is admitted; the learner scores them with the same weights, before it trains again. The
largest difference is the metric `sync_logprob_gap_max`: about 1e-6 in float32, some tenths in bfloat16, and far more
when an update went wrong. It is part of no checkpoint and changes nothing: probes have seeds of their own.

A probe that fails, or that is not there in time, is no failure of the run: nothing is reported then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from deepcoder_contracts.recipe import Recipe
from deepcoder_trainer.problems.prompt import EncodedProblem
from deepcoder_trainer.seeds import seed
from deepcoder_trainer.types import Batch, GenerationRequest, Group, Learner, Outcome, Sample, Sampler, SamplerLost

log = logging.getLogger(__name__)

EVERY_STEPS = 10
"""Steps from one probe to the next."""
LEAST = 4
"""Responses of one probe, where there are no more samplers."""
TOKENS = 16
"""Most of each, where the stage allows so many."""
SECONDS = 60.0
"""Longest time that samplers may take."""


class Probe:
    """The probes of one stage's loop."""

    def __init__(
        self, recipe: Recipe, problems: Sequence[EncodedProblem], sampler: Sampler, samplers: int, limit: int = TOKENS
    ) -> None:
        """`samplers` is their number: each is to be asked. `limit` is that of the stage's responses."""
        self._recipe = recipe
        self._tokens = min(TOKENS, limit)
        self._prompts = [problems[i % len(problems)].prompt_ids for i in range(max(LEAST, samplers))]
        self._sampler = sampler
        self._sampled: Batch | None = None
        self._begun = False

    async def sample(self, step: int, version: int) -> None:
        """Sample with the weights of `version`, which are those after the stage's `step`, where that is due."""
        if self._begun and step % EVERY_STEPS:
            return
        self._begun = True
        try:
            async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
                responses = [
                    tasks.create_task(self._sampler.generate(self._request(version, i)))
                    for i in range(len(self._prompts))
                ]
        except (TimeoutError, ExceptionGroup) as error:
            causes = error.exceptions if isinstance(error, ExceptionGroup) else [error]
            if not all(isinstance(cause, SamplerLost | TimeoutError) for cause in causes):
                raise
            log.warning("version %d is not probed: %s", version, causes[0] or "no answer in time")
            return
        # A reward keeps all of them in: what is cut off and has none may be left out of a batch.
        outcome = Outcome(1.0, "probe", 0.0)
        samples = [
            Sample(0, i, prompt, response.result(), outcome, self._tokens)
            for i, (prompt, response) in enumerate(zip(self._prompts, responses, strict=True))
        ]
        self._sampled = Batch(step, (Group(0, "probe", version, tuple(samples)),))

    async def gap(self, learner: Learner) -> dict[str, float]:
        """The metric of what was sampled since the last call, scored with weights that are still the same."""
        sampled, self._sampled = self._sampled, None
        if sampled is None:
            return {}
        return {"sync_logprob_gap_max": await learner.largest_gap(sampled)}

    def _request(self, version: int, index: int) -> GenerationRequest:
        return GenerationRequest(
            request_id=f"probe/{version}/{index}",
            prompt_ids=self._prompts[index],
            max_tokens=self._tokens,
            temperature=self._recipe.temperature,
            seed=seed(self._recipe.seed, "probe", index),
        )
