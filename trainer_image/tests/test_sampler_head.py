"""The sampler's head multiplies into float32, as the learner's does: real vLLM in bfloat16, with large logits."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcoder_trainer.sampler import engine as engines
from deepcoder_trainer.sampler import plugin
from deepcoder_trainer.sampler.pretrained import pretrained_chunks
from deepcoder_trainer.sampler.settings import EngineSettings
from deepcoder_trainer.sampler.stepped import SteppedEngine
from deepcoder_trainer.sampler.translation import engine_arguments

SETTINGS = EngineSettings("bfloat16", 128, 8, 2048, 64 << 20)
LIKELIEST = 20


@pytest.mark.vllm
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
async def test_logits_of_a_bfloat16_model_are_not_rounded_to_bfloat16(
    make_coder_model: Callable[..., Path], tied: bool
) -> None:
    """Where logits are above 1, bfloat16 has multiples of 1/128 alone, and so are their differences."""
    model = make_coder_model(tied=tied)
    os.environ.update(engines.environment(SETTINGS))
    engine = await engines.start_engine(str(model), SETTINGS)
    assert isinstance(engine, SteppedEngine)
    try:
        chunks = [with_large_logits(chunk) for chunk in pretrained_chunks(model, "float32")]
        await engines.update_weights(engine, chunks, 1, dtype="bfloat16", clear_cache=False)
        logprobs = await asyncio.wrap_future(engine._submit(likeliest))
    finally:
        await engine.close()
    assert len(logprobs) >= LIKELIEST
    steps = np.diff(np.sort(logprobs)) * 128
    rounded = np.abs(steps - steps.round()) < 0.01
    assert rounded.mean() < 0.5, "the logits are rounded, those of the learner are not"


@pytest.mark.vllm
def test_each_process_of_vllm_asks_to_use_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above, alone on a CPU with AMX, is killed without that; here another test may have asked before."""
    import torch

    asked: list[bool] = []
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: asked.append(True))
    plugin.register()
    assert asked


@pytest.mark.vllm
def test_each_process_of_vllm_watches_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(plugin, "end_with_parent", lambda: asked.append(True))
    plugin.register()
    assert asked


def with_large_logits(chunk: Any) -> Callable[[], Any]:
    """The weights with a head that gives logits of about ± 16, as language models have them."""
    rng = np.random.default_rng(0)
    heads = {"lm_head.weight", "model.embed_tokens.weight"}

    def large(array: Any) -> Any:
        return rng.normal(0, 16 / math.sqrt(array.shape[1]), array.shape).astype(np.float32)

    changed = {name: large(array) if name in heads else array for name, array in chunk.items()}

    async def fetch() -> Any:
        return changed

    return fetch


def likeliest(engine: Any) -> np.ndarray[Any, Any]:
    """Log-probabilities of the likeliest tokens at one position, all from the same logits."""
    from vllm import SamplingParams

    asked = SamplingParams(temperature=1.0, max_tokens=1, logprobs=LIKELIEST, seed=1, detokenize=False)
    engine.add_request("likeliest", {"prompt_token_ids": [5, 9, 20]}, asked)
    while True:
        for output in engine.step():
            if output.finished:
                [position] = output.outputs[0].logprobs
                return np.array([each.logprob for each in position.values()])


def test_float32_needs_nothing_and_determinism_keeps_the_kernels_that_do_not_depend_on_the_batch() -> None:
    head = {"head_dtype": "float32"}
    assert engine_arguments("/model", SETTINGS)["hf_overrides"] == head
    entries = {"rope_scaling": {"factor": 2.0}}
    assert engine_arguments("/model", replace(SETTINGS, model_entries=entries))["hf_overrides"] == entries | head
    assert engine_arguments("/model", replace(SETTINGS, dtype="float32"))["hf_overrides"] == {}
    assert engine_arguments("/model", replace(SETTINGS, deterministic=True))["hf_overrides"] == {}
