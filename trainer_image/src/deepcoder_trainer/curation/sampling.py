"""Measures a model's pass rate on each problem: responses are sampled and judged as in training, each exactly once.

This is the last filter, applied only to problems that all others leave, because a response costs more than anything
else here. The result of a response is in a journal under the SHA-256 of everything it depends on (model, prompt,
length, temperature, seed, its number, and the judging), so a killed run continues with the next response. A response
that no judge could judge is in no journal and does not count; too many of them end the sampling (SandboxUnavailable).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deepcoder_trainer.background import first_cause
from deepcoder_trainer.curation.journal import Journal, verdict_key
from deepcoder_trainer.curation.output import own_row
from deepcoder_trainer.curation.prepare import Candidate
from deepcoder_trainer.curation.rates import Rates
from deepcoder_trainer.curation.spool import Spool
from deepcoder_trainer.problems.prompt import encode_prompt
from deepcoder_trainer.problems.rows import problem_from_row
from deepcoder_trainer.protocols import SandboxUnavailable
from deepcoder_trainer.rollout.reward import Reward
from deepcoder_trainer.seeds import seed
from deepcoder_trainer.types import GenerationRequest, IntArray, Problem, Sampler

AT_ONCE = 256
"""Problems in flight: enough to fill any engine, few enough that their tests fit into memory."""
UNJUDGED_RATIO = 0.01
"""Share of unjudged responses above which pass rates are worthless."""


@dataclass(frozen=True)
class Asked:
    """How a model is sampled."""

    model: str
    """URI of the model, for the report."""
    model_digest: str
    precision: str
    samples: int = 8
    """Number of responses per problem."""
    max_tokens: int = 16_384
    temperature: float = 0.6
    top_p: float = 1.0
    seed: int = 0


class PassRates:
    """Samples one model on all problems."""

    def __init__(self, asked: Asked, sampler: Sampler, reward: Reward, tokenizer: Any, journal: Journal) -> None:
        self._asked, self._sampler, self._reward = asked, sampler, reward
        self._tokenizer, self._journal = tokenizer, journal
        self._verdicts: dict[str, list[bool]] = defaultdict(list)
        self._sampled = self._known = self._unjudged = 0

    async def of(self, spool: Spool, candidates: Sequence[Candidate], done: Callable[[], None]) -> Rates:
        """Return the pass rates of the candidates. `done` is called after each problem."""
        free = asyncio.Semaphore(AT_ONCE)

        async def one(candidate: Candidate) -> None:
            async with free:
                await self._problem(spool, candidate)
            done()

        try:
            async with asyncio.TaskGroup() as tasks:
                for candidate in candidates:
                    tasks.create_task(one(candidate))
        except BaseExceptionGroup as error:
            raise first_cause(error) from None  # all tasks would have failed with the same error
        total = self._sampled + self._known + self._unjudged
        if self._unjudged > UNJUDGED_RATIO * total:
            raise SandboxUnavailable(
                f"judges failed on {self._unjudged} of {total} responses, more than {UNJUDGED_RATIO:.0%}. What was "
                f"judged is kept in {self._journal.where}: run it again to continue; {SandboxUnavailable.WHERE_TO_LOOK}"
            )
        rates = {problem: sum(passed) / len(passed) for problem, passed in self._verdicts.items()}
        return Rates(rates, asdict(self._asked), self._sampled, self._known)

    async def _problem(self, spool: Spool, candidate: Candidate) -> None:
        record = spool.read(candidate.span)
        problem = problem_from_row(own_row(record, None, {}))
        judged_by, prompt_ids = (
            verdict_key(problem, problem.answer or ""),
            encode_prompt(problem.prompt, self._tokenizer),
        )
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._asked.samples):
                tasks.create_task(self._response(problem, prompt_ids, judged_by, number))

    async def _response(self, problem: Problem, prompt_ids: IntArray, judged_by: str, number: int) -> None:
        key = self._key(problem, judged_by, number)
        passed = self._journal.get(key)
        if passed is not None:
            self._known += 1
        else:
            passed = await self._ask(problem, prompt_ids, key)
            if passed is None:
                self._unjudged += 1
                return
            self._sampled += 1
        self._verdicts[problem.id].append(passed)

    async def _ask(self, problem: Problem, prompt_ids: IntArray, key: str) -> bool | None:
        asked = self._asked
        generation = await self._sampler.generate(
            GenerationRequest(
                request_id=key,
                prompt_ids=prompt_ids,
                max_tokens=asked.max_tokens,
                temperature=asked.temperature,
                top_p=asked.top_p,
                seed=seed(asked.seed, "curation", key),
            )
        )
        outcome = await self._reward(problem, generation.text, f"rates/{key[:32]}")
        if outcome.reward is None:
            return None
        await self._journal.put(key, outcome.reward > 0, outcome.seconds)
        return outcome.reward > 0

    def _key(self, problem: Problem, judged_by: str, number: int) -> str:
        asked = asdict(self._asked)
        del asked["samples"], asked["model"]  # neither the number of samples nor the model's URI affects a response
        document = [asked, problem.prompt, problem.scoring.value, judged_by, number]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
