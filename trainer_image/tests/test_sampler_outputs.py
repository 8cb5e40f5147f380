"""What vLLM's outputs become, and when an engine that is paused goes on. vLLM itself is not started."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.sampler import engine as engine_module
from deepcoder_trainer.sampler.engine import AsyncEngine
from deepcoder_trainer.sampler.settings import EngineSettings
from deepcoder_trainer.sampler.translation import generation_from
from deepcoder_trainer.types import Finish, GenerationRequest


class Words:
    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def output(reason: str | None) -> Any:
    """A finished request of two tokens."""
    completion = SimpleNamespace(
        token_ids=[5, 6],
        logprobs=SimpleNamespace(logprobs=[-1.0, -2.0], start_indices=[0, 1]),
        finish_reason=reason,
        weight_versions=None,
    )
    return SimpleNamespace(request_id="r", outputs=[completion], finished=True)


@pytest.mark.parametrize(("reason", "finish"), [("stop", Finish.STOP), ("length", Finish.LENGTH)])
def test_a_response_ends_by_itself_or_at_its_limit(reason: str, finish: Finish) -> None:
    generation = generation_from(output(reason), Words())
    assert (generation.finish, generation.text) == (finish, "5 6")


@pytest.mark.parametrize("reason", ["abort", "error", "repetition", None])
def test_a_response_that_the_engine_cut_off_is_lost_and_not_finished(reason: str | None) -> None:
    with pytest.raises(SamplerLost, match=f"request r itself: {reason}"):
        generation_from(output(reason), Words())


class Core:
    """vLLM's asynchronous engine, as far as pausing goes; it takes its time over each call."""

    def __init__(self) -> None:
        self.paused = False
        self.calls: list[str] = []
        self.refuses = False

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        await asyncio.sleep(0)
        self.paused = True
        self.calls.append("pause")

    async def resume_generation(self) -> None:
        await asyncio.sleep(0)
        self.paused = False
        self.calls.append("resume")

    async def reset_prefix_cache(self, *, reset_running_requests: bool) -> None:
        assert self.paused, "requests that run cannot be reset"
        self.calls.append("reset")

    async def add_request(self, name: str, prompt: Any, parameters: Any) -> asyncio.Queue[Any]:
        if self.refuses:
            raise ValueError("too long")
        self.calls.append(name if self.paused else f"{name} runs at once")
        return asyncio.Queue()


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    monkeypatch.setattr(engine_module, "sampling_parameters", lambda request: None)
    monkeypatch.setattr(engine_module, "refusal", lambda error: error if isinstance(error, ValueError) else None)
    return Core()


def wave(*names: str) -> list[GenerationRequest]:
    return [GenerationRequest(name, np.zeros(1, np.int32), 1, 1.0, seed=1) for name in names]


async def test_a_wave_that_starts_during_an_update_waits_for_its_end(core: Core) -> None:
    engine = AsyncEngine(core, Words())
    await engine.pause()  # as an update does before it loads anything
    for response in await engine.begin(wave("a", "b")):
        asyncio.ensure_future(response).cancel()
    assert core.paused, "the weights are half loaded"
    await engine.resume(clear_cache=True)
    assert core.calls == ["pause", "a", "b", "reset", "resume"]


async def test_an_update_that_begins_while_a_wave_starts_has_the_engine_paused_until_its_own_end(core: Core) -> None:
    engine = AsyncEngine(core, Words())
    responses, _ = await asyncio.gather(engine.begin(wave("a", "b")), engine.pause())
    for response in responses:
        asyncio.ensure_future(response).cancel()
    assert core.paused
    await engine.resume(clear_cache=False)
    assert not core.paused


async def test_a_wave_that_is_refused_leaves_the_engine_running(core: Core) -> None:
    engine = AsyncEngine(core, Words())
    core.refuses = True
    with pytest.raises(ValueError, match="too long"):
        await engine.begin(wave("a", "b"))
    assert not core.paused


@pytest.mark.parametrize(
    ("deterministic", "given", "threads"), [(True, None, "1"), (True, "3", "3"), (False, None, "5")]
)
async def test_threads_of_an_engine_are_those_of_the_container_or_one_where_bits_matter(
    deterministic: bool, given: str | None, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started:
        def __init__(self, model: str, settings: EngineSettings) -> None: ...

        async def started(self) -> None: ...

    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    monkeypatch.setattr(os, "environ", variables | ({"OMP_NUM_THREADS": given} if given else {}))
    monkeypatch.setattr("deepcoder_trainer.cpus.cpu_limit", lambda: 5)
    monkeypatch.setattr("deepcoder_trainer.sampler.stepped.SteppedEngine", Started)
    await engine_module.start_engine("/model", EngineSettings("float32", 8, 1, 8, None, deterministic=deterministic))
    assert os.environ["OMP_NUM_THREADS"] == threads
