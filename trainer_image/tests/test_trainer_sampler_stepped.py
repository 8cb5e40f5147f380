"""The engine that a thread of ours steps: what becomes of it when somebody who asked goes away. vLLM is scripted."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.sampler import stepped
from deepcoder_trainer.sampler.settings import EngineSettings
from deepcoder_trainer.sampler.stepped import SteppedEngine
from deepcoder_trainer.types import GenerationRequest


class Core:
    """Answers all that it was asked in one step, once it may."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.steps = threading.Event()
        self.calls = threading.Event()
        self.versions: list[str] = []

    def add_request(self, request_id: str, *_: Any) -> None:
        self.asked.append(request_id)

    def has_unfinished_requests(self) -> bool:
        return bool(self.asked)

    def step(self) -> list[Any]:
        if not self.steps.wait(0.01):
            return []
        asked, self.asked = self.asked, []
        return [SimpleNamespace(request_id=name, finished=True) for name in asked]

    def collective_rpc(self, method: str, kwargs: Any) -> None:
        self.calls.wait(10)

    def set_weight_version(self, version: str) -> None:
        self.versions.append(version)


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    core = Core()
    monkeypatch.setattr(SteppedEngine, "_start", lambda *_: core)
    monkeypatch.setattr(stepped, "sampling_parameters", lambda _request: None)
    monkeypatch.setattr(stepped, "generation_from", lambda output, _tokenizer: output.request_id)
    return core


def asked(*names: str) -> list[GenerationRequest]:
    return [GenerationRequest(name, np.zeros(1, np.int32), 4, 1.0) for name in names]


async def started() -> SteppedEngine:
    engine = SteppedEngine("model", EngineSettings("float32", 8, 8, 8, None))
    await engine.started()
    return engine


async def test_a_response_that_nobody_waits_for_ends_no_engine(core: Core) -> None:
    engine = await started()
    left, stays = await engine.begin(asked("left", "stays"))
    left.cancel()  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    core.steps.set()
    async with asyncio.timeout(60):
        assert await stays == "stays"
        [after] = await engine.begin(asked("after"))
        assert await after == "after"
    await engine.close()


async def test_a_call_that_was_taken_back_before_its_turn_is_not_made(core: Core) -> None:
    engine = await started()
    before = asyncio.create_task(engine.weights_call("finish_weight_update"))
    await asyncio.sleep(0)
    taken_back = asyncio.create_task(engine.set_version(1))
    await asyncio.sleep(0)
    taken_back.cancel()
    await asyncio.gather(taken_back, return_exceptions=True)
    core.calls.set()
    async with asyncio.timeout(60):
        await before
        await engine.set_version(2)
    assert core.versions == ["2"]
    await engine.close()


async def test_an_engine_that_ends_tells_all_who_still_wait(core: Core) -> None:
    engine = await started()
    stays, gone = await engine.begin(asked("stays", "gone"))  # the newest is told first
    gone.cancel()  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(SamplerLost, match="closed"):
        async with asyncio.timeout(60):
            await stays


def test_what_mends_the_compiler_is_known_by_its_name_and_is_all_that_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "vllm.env_override", raising=False)
    stepped.leave_the_compiler_out()
    given = sys.modules["vllm.env_override"]
    monkeypatch.delitem(sys.modules, "vllm.env_override")
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0])
    assert "import vllm.env_override" in (folder / "__init__.py").read_text(), "and it is not loaded in another way"
    wanted = set(
        re.findall(r"from vllm\.env_override import (\w+)", (folder / "compilation/compiler_interface.py").read_text())
    )
    assert wanted <= vars(given).keys(), "others find what they want of it"


@pytest.mark.parametrize(
    ("module", "wants"),
    [
        ("vllm.parser.engine.adapters", "v1/structured_output/__init__.py"),
        ("vllm.entrypoints.mcp.tool_server", "reasoning/abs_reasoning_parsers.py"),
    ],
)
def test_what_the_engine_wants_of_vllms_server_is_in_what_stands_in_for_it(
    monkeypatch: pytest.MonkeyPatch, module: str, wants: str
) -> None:
    for left_out in ("vllm.parser.engine.adapters", "vllm.entrypoints.mcp.tool_server"):
        monkeypatch.setitem(sys.modules, left_out, None)  # type: ignore[arg-type]  so that it is as before afterwards
        del sys.modules[left_out]
    stepped.leave_the_server_out()
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    text = (Path(spec.submodule_search_locations[0]) / wants).read_text()
    wanted = set(re.findall(rf"^from {re.escape(module)} import (\w+)$", text, re.MULTILINE))
    assert wanted, "it is loaded for nothing else"
    assert wanted <= vars(sys.modules[module]).keys()
