"""Which responses have a seed of their own: those that must come out the same again, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deepcoder_contracts.judge import TestCase
from deepcoder_trainer.problems.prompt import EncodedProblem
from deepcoder_trainer.rollout.rollout import Admitted, Rollout, Sampling
from deepcoder_trainer.sampler.start import engine_seed
from deepcoder_trainer.types import Finish, Generation, GenerationRequest, Outcome, Problem

PROBLEM = EncodedProblem(Problem("p", "test", "x", (TestCase(input="", output=""),)), prompt_ids=np.zeros(1, np.int32))


class Noting:
    def __init__(self) -> None:
        self.asked: list[GenerationRequest] = []

    async def generate(self, request: GenerationRequest) -> Generation:
        self.asked.append(request)
        return Generation(np.zeros(1, np.int32), np.zeros(1, np.float32), Finish.STOP, "", ())


async def reward(*_: Any) -> Outcome:
    return Outcome(1.0, "passed", 0.0)


@pytest.mark.parametrize(
    ("seeded", "wave", "expected"),
    [(False, None, False), (True, None, True), (False, ("batch-1", 0, 1), True)],
    ids=["training", "evaluation", "deterministic training"],
)
async def test_only_what_must_come_out_the_same_again_is_seeded(
    seeded: bool, wave: tuple[str, int, int] | None, expected: bool
) -> None:
    sampler = Noting()
    rollout = Rollout(sampler, reward, Sampling(1, 3, 8, 1.0, seeded=seeded))  # type: ignore[arg-type]
    await rollout.group(Admitted(5, 0, wave), PROBLEM)
    seeds = [request.seed for request in sampler.asked]
    assert [s is not None for s in seeds] == [expected] * 3
    assert not expected or len(set(seeds)) == 3


def test_no_two_engines_draw_from_the_same_generator(make_config: Callable) -> None:
    seeds = {engine_seed(make_config(ordinal=ordinal), number) for ordinal in (1, 2) for number in range(8)}
    assert len(seeds) == 16
    assert all(0 <= s < 2**31 for s in seeds)
