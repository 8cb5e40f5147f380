"""Samplers that share their devices with learners: a group, and an actor's engine, asleep and awake."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from deepcoder_contracts.learner_memory import COLOCATED_SHARE
from deepcoder_contracts.stage import Placement, StageConfig
from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.sampler import engine as engines
from deepcoder_trainer.sampler.actor import SamplerActor
from deepcoder_trainer.sampler.engine import AsyncEngine
from deepcoder_trainer.sampler.group import SamplerGroup
from deepcoder_trainer.sampler.settings import EngineSettings, engine_settings
from deepcoder_trainer.sampler.translation import engine_arguments
from deepcoder_trainer.types import GenerationRequest, WeightRefs

REFS = WeightRefs((), "float32")
WEIGHTS = WeightRefs(tuple({name: np.zeros(2, np.float32)} for name in "ab"), "float32")
SETTINGS = EngineSettings("float32", 8, 8, 8, None)
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


PARTS = {"weights", "kv_cache"}


class VLLM:
    """vLLM's asynchronous engine as far as samplers ask it.

    A call that the installed vLLM does not have or would not take is refused. What has memory, who is scheduled and
    what becomes of requests is as in its engine core (v1/engine/core.py), which goes on by itself once all memory is
    there.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.resident = set(PARTS)
        self.paused = False
        self.in_flight: dict[str, asyncio.Queue[Any]] = {}

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        from vllm.v1.engine.async_llm import AsyncLLM

        signature = inspect.signature(getattr(AsyncLLM, name))

        async def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            if "mode" in bound.arguments:
                assert bound.arguments["mode"] in get_args(signature.parameters["mode"].annotation)
            return self.does(name, bound.arguments)

        return call

    def does(self, name: str, given: Mapping[str, Any]) -> Any:
        match name:
            case "add_request":
                return self.in_flight.setdefault(given["request_id"], asyncio.Queue())
            case "pause_generation":
                self.calls.append((name, given["mode"]))
                self.pause(given["mode"])
            case "sleep":
                self.calls.append((name, given["level"], given["mode"]))
                self.pause(given["mode"])
                self.resident.clear()
            case "wake_up":
                self.calls.append((name, *given["tags"]))
                assert set(given["tags"]) <= PARTS
                self.resident |= set(given["tags"])
                self.paused = self.paused and self.resident != PARTS
            case "resume_generation":
                self.calls.append((name,))
                assert self.resident == PARTS, "it goes on before all of its memory is there"
                self.paused = False
            case "collective_rpc":
                self.calls.append((given["method"],))
                self.of_the_workers(given["method"], given["kwargs"])
            case _:
                self.calls.append((name,))
        return None

    def of_the_workers(self, method: str, given: Mapping[str, Any]) -> None:
        from vllm.v1.worker.gpu_worker import Worker

        from deepcoder_trainer.sampler.weights import UpdateInfo

        inspect.signature(getattr(Worker, method)).bind(None, **given)
        assert self.paused, "tokens would be sampled with half of the new weights"
        assert "weights" in self.resident, "weights for an engine that has no memory for them"
        if method == "update_weights":
            assert Path(UpdateInfo(**given["update_info"]).path).exists()

    def pause(self, mode: str) -> None:
        self.paused = True
        if mode == "abort":
            for name in self.in_flight:
                self.answer(name, "abort")

    def answer(self, name: str, reason: str) -> None:
        """End a request that is in flight."""
        logprobs = SimpleNamespace(logprobs=[-1.0], start_indices=[0])
        completion = SimpleNamespace(finish_reason=reason, token_ids=[1], logprobs=logprobs, weight_versions=None)
        self.in_flight[name].put_nowait(SimpleNamespace(request_id=name, finished=True, outputs=[completion]))

    def shutdown(self) -> None: ...


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> VLLM:
    """What each actor's engine is, with sleep as on a GPU."""
    os.environ.update(engines.environment(SETTINGS))
    vllm = VLLM()

    async def start_engine(folder: str, settings: EngineSettings) -> engines.Engine:
        return AsyncEngine(vllm, SimpleNamespace(decode=lambda *_, **__: "text"), sleeps=True)

    monkeypatch.setattr(engines, "start_engine", start_engine)
    return vllm


@pytest.mark.vllm
async def test_an_engine_takes_memory_for_weights_loads_them_and_takes_the_rest_before_it_goes_on(vllm: VLLM) -> None:
    actor = SamplerActor({}, SETTINGS)
    await actor.start()
    await actor.sleep()
    await actor.sleep()
    await actor.update_weights(WEIGHTS, 1, True)
    with pytest.raises(RuntimeError, match="sleeps"):
        await actor.generate(REQUEST)
    assert vllm.paused
    await actor.wake()
    await actor.wake()
    assert not vllm.paused
    assert vllm.calls == [
        ("pause_generation", "keep"),
        ("sleep", 2, "keep"),
        ("wake_up", "weights"),
        ("start_weight_update",),
        ("update_weights",),
        ("update_weights",),
        ("finish_weight_update",),
        ("update_weight_version",),
        ("reset_prefix_cache",),
        ("wake_up", "kv_cache"),
        ("resume_generation",),
    ]


@pytest.mark.vllm
async def test_what_is_in_flight_when_the_learner_takes_its_turn_is_kept_and_costs_no_sampler(vllm: VLLM) -> None:
    group = SamplerGroup(lambda: SamplerActor({}, SETTINGS), 1, replacements=0)  # type: ignore[arg-type,return-value]
    await group.start()
    await group.update_weights(WEIGHTS, 0)
    response = asyncio.create_task(group.generate(REQUEST))
    async with asyncio.timeout(60):
        while not vllm.in_flight:
            await asyncio.sleep(0)
    await group.sleep()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not response.done()
    await group.update_weights(WEIGHTS, 1)
    await group.wake()  # raises where no sampler is left
    vllm.answer("r", "stop")
    assert (await response).text == "text"
    await group.close()


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("name", "arguments"), [("sleep", {"depth": 2}), ("pause_generation", {"mode": "hold"}), ("nap", {})]
)
async def test_the_stand_in_refuses_what_the_installed_vllm_would(
    vllm: VLLM, name: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, AssertionError, AttributeError)):
        await getattr(vllm, name)(**arguments)


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
