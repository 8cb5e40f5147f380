"""An attempt whose sampler, learner and reward are scripted, over storage that is real: for tests of what is around."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from controller_world import ScriptedLearner, ScriptedSampler, scripted_reward, stage_config

from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.manifest import FileEntry
from deepcoder_contracts.stage import DatasetSource, ModelSource, StageConfig, Storage
from deepcoder_trainer.errors import LearnerLost
from deepcoder_trainer.running import attempt, startup
from deepcoder_trainer.running.attempt import Attempt
from deepcoder_trainer.stopping import Stop
from deepcoder_trainer.types import Outcome, Problem

T = TypeVar("T")
TINY = {
    "architectures": ["Qwen2ForCausalLM"],
    "max_position_embeddings": 4096,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "tie_word_embeddings": False,
}


class StoringLearner(ScriptedLearner):
    """Has files enough for a checkpoint writer: none."""

    async def save(self, directory: str) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)

    async def save_pretrained(self, directory: str) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)

    async def upload(self, directory: str, storage: Storage, prefix: str) -> list[FileEntry]:
        return []

    async def beside(self, work: Callable[[Path], T]) -> T:
        raise LearnerLost("it has no model")

    async def close(self) -> None: ...


class ScriptedReward:
    """A reward of the user's own that asks no judge."""

    wants_programs = False

    def __init__(self, function: Any) -> None:
        self._function = function

    async def __call__(self, problem: Problem, response: str, key: str) -> Outcome:
        outcome: Outcome = await self._function(problem, response, key)
        return outcome


class World:
    """The parts that an attempt starts, scripted."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, every: int) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model/config.json").write_text(json.dumps(TINY))
        problems = tmp_path / "problems.jsonl"
        problems.write_text(
            "".join(
                json.dumps({"id": f"p{i}", "prompt": f"say {i}", "tests": [{"input": "", "output": f"{i}"}]}) + "\n"
                for i in range(5)
            )
        )
        config = stage_config(steps, every=every)
        self.store = tmp_path / "store"
        self.config: StageConfig = config.model_copy(
            update={
                "model": ModelSource(uri=f"{tmp_path}/model"),
                "dataset": DatasetSource(uri=str(problems)),
                "recipe": config.recipe.model_copy(update={"reward": "tests:reward"}),
                "storage": config.storage.model_copy(update={"uri": f"file://{self.store}"}),
            }
        )
        self.sampler = ScriptedSampler(random.Random(1))
        self.sampler.restarts = 2  # type: ignore[attr-defined]
        self.learner = StoringLearner()
        self.stop = Stop()
        self.reward: Any = scripted_reward

        async def samplers(config: StageConfig, model_dir: Path) -> ScriptedSampler:
            return self.sampler

        async def learners(config: StageConfig, model_dir: Path) -> StoringLearner:
            return self.learner

        monkeypatch.setattr(startup, "start_samplers", samplers)
        monkeypatch.setattr("deepcoder_trainer.learner.group.start_learners", learners)
        monkeypatch.setattr(attempt, "connect_ray", lambda resources, weights: None)
        monkeypatch.setattr(attempt, "stop_on_signals", lambda stop, seconds: None)
        monkeypatch.setattr(attempt, "load_tokenizer", lambda folder: lambda prompt: {"input_ids": [1, 2]})
        monkeypatch.setattr(attempt, "load_reward", lambda name: ScriptedReward(self.reward))
        monkeypatch.setattr(attempt, "reward_digest", lambda name: None)

    async def run(self) -> ExitRecord:
        async with asyncio.timeout(30):
            return await Attempt(self.config, self.stop, None).run()

    def exit_record(self) -> ExitRecord:
        return ExitRecord.from_json((self.store / "s/attempts/001/exit.json").read_bytes())
