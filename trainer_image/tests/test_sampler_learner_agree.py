"""Samplers and learner give a token the same probability: real vLLM against a real learner's weights, sync by sync.

The weights take the path of a run: out of the learner in chunks, through vLLM's weight-transfer API, into a live
engine. What it samples then is scored by the learner, as the probe of a run does (see probe.py). Both of vLLM's drives
have the test for one model in test_trainer_sampler_vllm.py; here it is architectures, and all of it in the long form.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sampler_agreement import agree, agree_by_broadcast, agree_by_way_of_the_card, probed, started

from deepcoder_contracts.recipe import Recipe

pytestmark = pytest.mark.vllm

ARCHITECTURES = ["Qwen2", "Qwen3", "Llama"]


@pytest.mark.parametrize(
    ("architecture", "tied", "stepped"),
    [
        pytest.param("Qwen2", False, True),
        pytest.param("Qwen3", True, True),
        pytest.param("Llama", False, True),
        pytest.param("Qwen2", True, True, marks=pytest.mark.long),
        pytest.param("Qwen3", False, True, marks=pytest.mark.long),
        pytest.param("Llama", True, True, marks=pytest.mark.long),
        *(
            pytest.param(architecture, tied, False, marks=pytest.mark.long)
            for architecture in ARCHITECTURES
            for tied in (True, False)
        ),
    ],
)
async def test_log_probabilities_equal_the_learners_after_each_sync(
    make_coder_model: Callable[..., Path],
    make_learner: Callable[..., Any],
    make_recipe: Callable[..., Recipe],
    make_batch: Callable[..., Any],
    architecture: str,
    tied: bool,
    stepped: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deepcoder_trainer import broadcast

    model = make_coder_model(architecture, tied=tied)
    learner = make_learner(make_recipe(learning_rate=3e-3), model)
    async with started(model, stepped=stepped) as sampler:
        await agree(sampler, learner, make_batch)
        if stepped:  # its worker is in this process
            await agree_by_way_of_the_card(sampler, learner, make_batch, monkeypatch)
            monkeypatch.setattr(broadcast, "BUCKET_BYTES", 20_000)  # several make up one update
            await agree_by_broadcast(sampler, learner, make_batch, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_tails_of_bfloat16_are_told(
    make_coder_model: Callable[..., Path],
    make_learner: Callable[..., Any],
    make_recipe: Callable[..., Recipe],
    make_batch: Callable[..., Any],
    architecture: str,
) -> None:
    model = make_coder_model(architecture, tied=False)
    learner = make_learner(make_recipe(precision="BFloat16", learning_rate=3e-3), model)
    # In processes of its own: this one's has the learner's process group, which bfloat16 has with one rank, too.
    async with started(model, stepped=False, dtype="bfloat16") as sampler:
        for version in range(1, 4):
            await learner.train(make_batch(version))
            await sampler.update_weights(await learner.export_weights(), version)
            told = await probed(sampler, learner, version)
            print(architecture, version, {name: round(value, 4) for name, value in told.items()}, flush=True)
            assert told["sync_logprob_gap_p95"] <= told["sync_logprob_gap_max"] < 1.0
            assert told["sync_outside_clip_ratio"] <= 0.05
