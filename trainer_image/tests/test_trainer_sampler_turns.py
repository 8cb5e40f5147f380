"""Samplers that share their devices with learners: a group, and an actor's engine, asleep and awake."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcoder_contracts.stage import Placement, StageConfig
from deepcoder_trainer.sampler import engine as engines
from deepcoder_trainer.sampler.actor import SamplerActor
from deepcoder_trainer.sampler.engine import AsyncEngine, engine_arguments
from deepcoder_trainer.sampler.group import SamplerGroup
from deepcoder_trainer.sampler.settings import COLOCATED_SHARE, EngineSettings, engine_settings
from deepcoder_trainer.types import GenerationRequest, SamplerLost, WeightRefs

REFS = WeightRefs((), "float32")
REQUEST = GenerationRequest("r", np.zeros(1, np.int32), 4, 1.0)


class Turning:
    """A member of a group; `fails` names a call that is lost."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
        async def call(*_: Any) -> None:
            await asyncio.sleep(0)
            self.calls.append(name)
            if name == self.fails:
                raise SamplerLost(name)

        return call


async def group_of(*members: Turning) -> SamplerGroup:
    left = list(members)
    group = SamplerGroup(lambda: left.pop(0), len(members), replacements=0)  # type: ignore[arg-type,return-value]
    await group.start()
    await group.update_weights(REFS, 0)
    return group


async def test_an_engine_that_does_not_sleep_has_ended_when_the_others_sleep_and_no_other_is_started() -> None:
    stays, fails = Turning(), Turning("sleep")
    group = await group_of(stays, fails)
    await group.sleep()
    assert stays.calls[-1] == "sleep"
    assert fails.calls[-1] == "close", "its memory is free before the learner takes any"
    assert group.restarts == 0
    await group.update_weights(REFS, 1)
    await group.wake()
    assert stays.calls[-2:] == ["update_weights", "wake"]


async def test_a_group_of_which_none_wakes_says_so() -> None:
    group = await group_of(Turning("wake"))
    await group.sleep()
    with pytest.raises(SamplerLost, match="no sampler is left"):
        await group.wake()


class VLLM:
    """What is asked of vLLM's asynchronous engine."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
        async def call(*args: Any, **kwargs: Any) -> None:
            self.calls.append((name, kwargs.get("tags") or kwargs.get("level") or kwargs.get("kwargs") or args))

        return call


async def test_an_engine_takes_memory_for_weights_loads_them_and_takes_the_rest_before_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = VLLM()

    async def start_engine(folder: str, settings: EngineSettings) -> engines.Engine:
        return AsyncEngine(vllm, sleeps=True)

    async def update(engine: engines.Engine, chunks: Any, version: int, **rest: Any) -> None:
        await engine.pause()
        await engine.weights_call("update_weights")
        await engine.resume(clear_cache=True)

    monkeypatch.setattr(engines, "start_engine", start_engine)
    monkeypatch.setattr(engines, "update_weights", update)
    actor = SamplerActor({}, EngineSettings("float32", 8, 8, 8, None))
    await actor.start()
    await actor.sleep()
    await actor.sleep()
    await actor.update_weights(REFS, 1, True)
    with pytest.raises(RuntimeError, match="sleeps"):
        await actor.generate(REQUEST)
    await actor.wake()
    await actor.wake()
    told = [call for call in vllm.calls if call[0] != "reset_prefix_cache"]
    assert [name for name, _ in told] == [
        "pause_generation",
        "sleep",
        "wake_up",
        "collective_rpc",
        "wake_up",
        "resume_generation",
    ], "it never goes on before all of its memory is there"
    assert [value for name, value in told if name in ("sleep", "wake_up")] == [2, ["weights"], ["kv_cache"]]


async def test_an_engine_on_a_shared_gpu_can_sleep_and_leaves_room_for_a_parked_learner(
    make_config: Callable[..., StageConfig],
) -> None:
    config = make_config()
    resources = config.stage.resources.model_copy(update={"accelerators": True})
    shared = config.stage.model_copy(update={"resources": resources, "placement": Placement.COLOCATED})
    model = {"num_attention_heads": 4, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 256}
    alone, beside = (
        engine_arguments("/model", engine_settings(config.model_copy(update={"stage": stage}), model))
        for stage in (config.stage.model_copy(update={"resources": resources}), shared)
    )
    assert (alone["gpu_memory_utilization"], alone["enable_sleep_mode"]) == (0.9, False)
    assert (beside["gpu_memory_utilization"], beside["enable_sleep_mode"]) == (COLOCATED_SHARE, True)
    on_cpus = engine_arguments("/model", replace(EngineSettings("float32", 8, 8, 8, 64), colocated=True))
    assert "enable_sleep_mode" not in on_cpus, "no CPU has it"
