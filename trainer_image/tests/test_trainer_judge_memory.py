"""Problems that ask for more memory than the run's judges allow are refused before programs for them are sampled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attempt_world import ScriptedReward, World
from controller_world import scripted_reward
from evaluation_world import make_context

from deepcoder_contracts.judge import TestCase
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.run import evaluate_weights, run_evaluate_stage
from deepcoder_trainer.judge.memory import refuse_above
from deepcoder_trainer.protocols import SandboxUnavailable
from deepcoder_trainer.running import attempt
from deepcoder_trainer.types import Problem

PROBLEM = Problem(id="p0", source="", prompt="", tests=(TestCase(input="", output=""),), memory_limit_mb=1024)
LARGER = replace(PROBLEM, id="p1", memory_limit_mb=2048)


class OwnReward(ScriptedReward):
    """A reward of the user's own that judges what it wants to: nothing."""

    wants_programs = True

    def with_judge(self, judge: Any) -> OwnReward:
        return self


class WaitingJudge:
    """Tells its largest memory limit, and judges nothing."""

    errors, capacity, version = 0, 8, None
    retries: dict[str, int] = {}

    async def max_memory_mb(self) -> int:
        return 1100

    def refusal(self, problem: Problem) -> None:
        return None

    async def judge(self, submission: Any) -> None:
        await asyncio.Event().wait()

    async def run(self) -> None:
        await asyncio.Event().wait()


def test_a_set_is_refused_by_its_first_problem_that_asks_for_more() -> None:
    with pytest.raises(
        BadConfig, match=r"^dataset: .* 1100 MiB, and 2 problems .* p1 \(memory_limit_mb 2048\)"
    ) as refused:
        refuse_above(1100, [PROBLEM, LARGER, replace(LARGER, id="p2")], "dataset")
    assert refused.value.field == "dataset"
    assert "lower memory_limit_mb in these rows, or give the judges more memory" in str(refused.value)


def test_problems_without_programs_and_judges_without_a_bound_are_not_compared() -> None:
    refuse_above(1100, [PROBLEM, replace(LARGER, answer="4")], "dataset")
    refuse_above(2048, [LARGER], "dataset")
    refuse_above(None, [LARGER], "dataset")


@pytest.mark.parametrize("custom", [False, True])
async def test_an_attempt_with_a_row_above_its_judges_memory_ends_before_anything_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, custom: bool
) -> None:
    @asynccontextmanager
    async def connect(*_: Any) -> AsyncIterator[WaitingJudge]:
        yield WaitingJudge()

    monkeypatch.setattr(attempt, "connect_judge", connect)
    world = World(tmp_path, monkeypatch, steps=1, every=1)
    assert world.config.dataset is not None
    problems = Path(str(world.config.dataset.uri))
    rows = [json.loads(line) for line in problems.read_text().splitlines()]
    rows[3]["memory_limit_mb"] = 2048
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(attempt, "load_reward", lambda name: OwnReward(scripted_reward))
    if not custom:
        recipe = world.config.recipe.model_copy(update={"reward": None})
        world.config = world.config.model_copy(update={"recipe": recipe})
    record = await world.run()
    assert world.exit_record() == record
    if custom:
        assert record.code == 0
        return
    assert (record.code, record.reason, record.field) == (64, "BadConfig", "dataset")
    assert "p3 (memory_limit_mb 2048)" in record.message


@pytest.mark.parametrize("train", [False, True])
async def test_an_evaluation_with_a_row_above_its_judges_memory_asks_for_no_sample(tmp_path: Path, train: bool) -> None:
    async def most() -> int:
        return 1000

    context = replace(make_context(tmp_path, [] if train else ["Base"], train=train), max_memory_mb=most)
    with pytest.raises(BadConfig, match=r"40 problems ask for more, the first of them p0 ") as refused:
        await (evaluate_weights(context, 1) if train else run_evaluate_stage(context))
    assert refused.value.field == "stage.evaluate.datasets.0"
    assert context.sampler.asked == []  # type: ignore[attr-defined]


async def test_an_evaluation_without_a_judge_waits_for_one_only_once(tmp_path: Path) -> None:
    asked: list[str] = []

    async def version() -> str:
        asked.append("version")
        raise SandboxUnavailable("no judge said within 1800 s which code grades")

    async def most() -> None:
        asked.append("memory")

    context = replace(make_context(tmp_path, ["Base"]), judge_version=version, max_memory_mb=most)
    with pytest.raises(SandboxUnavailable):
        await run_evaluate_stage(context)
    assert asked == ["version"], "each question waits for a judge as long as the stage's patience allows"


async def test_stored_results_are_returned_whatever_memory_the_judges_allow_now(tmp_path: Path) -> None:
    async def most() -> int:
        return 1000

    context = make_context(tmp_path, ["Base"])
    stored = await run_evaluate_stage(context)
    again = await run_evaluate_stage(replace(context, max_memory_mb=most))
    assert again.found is not None
    assert again.metrics == stored.metrics
