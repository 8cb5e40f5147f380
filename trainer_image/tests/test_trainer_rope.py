"""Rotary positions scaled past the trained length: the same for learner and sampler, and who may use which kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcoder_contracts.rope import RopeScaling
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.modelconfig import read_model_config, rope_entries
from deepcoder_trainer.plan.check import check
from deepcoder_trainer.sampler.settings import EngineSettings, engine_settings
from deepcoder_trainer.sampler.translation import engine_arguments

YARN = RopeScaling(type="Yarn", factor=4, original_positions=16)
DYNAMIC = RopeScaling(type="Dynamic", factor=4, original_positions=16)


def scaled_stage(config: StageConfig, context: int, rope: RopeScaling | None) -> StageConfig:
    stage = config.stage.model_copy(update={"context_tokens": context, "rope": rope})
    return config.model_copy(update={"stage": stage, "longest_context_tokens": context})


@pytest.mark.parametrize(
    ("config", "rope", "original", "theta"),
    [
        ({"max_position_embeddings": 32768, "rope_theta": 1e6}, RopeScaling(type="Yarn", factor=4), 32768, 1e6),
        ({"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 10.0}}, YARN, 16, 10.0),
        (
            {"max_position_embeddings": 64, "rope_scaling": {"original_max_position_embeddings": 8}},
            RopeScaling(type="Dynamic", factor=2.5),
            8,
            None,
        ),
    ],
)
def test_entries_keep_the_base_and_reach_the_factor(
    config: dict[str, Any], rope: RopeScaling, original: int, theta: float | None
) -> None:
    entries = rope_entries(config, rope)
    assert entries["max_position_embeddings"] == int(original * rope.factor)
    parameters = entries["rope_parameters"]
    assert parameters["rope_type"] == rope.type.value.lower()
    assert parameters["original_max_position_embeddings"] == original
    assert parameters.get("rope_theta") == theta
    assert rope_entries(config, None) == {}


def test_a_model_that_does_not_say_its_positions_needs_them_from_the_stage() -> None:
    with pytest.raises(BadConfig, match=r"set stage\.rope\.originalPositions"):
        rope_entries({}, RopeScaling(type="Yarn", factor=4))


@pytest.mark.parametrize("rope", [YARN, DYNAMIC], ids=["yarn", "dynamic"])
def test_a_stage_reaches_its_positions_times_the_factor_and_no_further(
    rope: RopeScaling, make_config: Callable[..., StageConfig], tiny_model: Callable[..., Path]
) -> None:
    model = read_model_config(tiny_model(max_position_embeddings=16))
    check(scaled_stage(make_config(), 64 - 16, rope), model)
    for context, scaling in ((64 - 15, rope), (64 - 16, None)):
        with pytest.raises(BadConfig, match="give the stage a rope scaling") as caught:
            check(scaled_stage(make_config(), context, scaling), model)
        assert caught.value.field == "stages[short].contextTokens"


def test_the_engine_is_told_what_the_learner_is(
    make_config: Callable[..., StageConfig], tiny_model: Callable[..., Path]
) -> None:
    model = read_model_config(tiny_model())
    config = scaled_stage(make_config(), 16, YARN)
    assert engine_arguments("/model", engine_settings(config, model))["hf_overrides"] == rope_entries(model, YARN)
    plain = scaled_stage(make_config(), 16, None)
    assert engine_arguments("/model", engine_settings(plain, model))["hf_overrides"] == {}


@pytest.mark.parametrize("architecture", ["Qwen2", "Qwen3", "Llama"])
def test_the_learner_computes_what_transformers_does_at_scaled_positions(
    architecture: str, tiny_model: Callable[..., Path], make_recipe: Callable
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from deepcoder_trainer.grpo.attention import Segments
    from deepcoder_trainer.learner.model import load_policy

    directory = tiny_model(architecture, max_position_embeddings=16)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 96, 60))
    everywhere = torch.arange(59)
    found = {}
    for name, rope in (("plain", None), ("yarn", YARN)):
        policy = load_policy(directory, torch.device("cpu"), make_recipe().precision, rope=rope)
        with torch.no_grad():
            inputs = (ids[:-1], everywhere, Segments.of(np.array([0, 59])), everywhere, ids[1:], 1.0)
            found[name] = policy(*inputs)[0]
    config = AutoConfig.from_pretrained(directory)
    for name, value in rope_entries(read_model_config(directory), YARN).items():
        setattr(config, name, value)
    reference = AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits = reference(ids[None]).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(-1, ids[1:, None]).squeeze(-1)
    torch.testing.assert_close(found["yarn"], expected, rtol=0, atol=1e-4)
    assert float((found["plain"] - expected).abs().max()) > 1e-2


@pytest.mark.vllm
@pytest.mark.parametrize("rope", ["Yarn", "Dynamic"])
async def test_the_engine_samples_at_scaled_positions_what_the_learner_computes(rope: str, coder_model: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from deepcoder_trainer.sampler import engine as engines
    from deepcoder_trainer.sampler.pretrained import pretrained_chunks
    from deepcoder_trainer.types import GenerationRequest

    factor, original = 3.0, 32
    config = AutoConfig.from_pretrained(coder_model)
    width = config.hidden_size // config.num_attention_heads
    theta = config.rope_parameters["rope_theta"]
    entries = rope_entries(
        read_model_config(coder_model), RopeScaling(type=rope, factor=factor, original_positions=original)
    )
    settings = EngineSettings("float32", 96, 8, 2048, 64 << 20, model_entries=entries)
    if rope == "Yarn":
        for name, value in entries.items():
            setattr(config, name, value)
    else:  # the engine takes the base of the longest length at every length
        base = theta * (factor * factor - (factor - 1)) ** (width / (width - 2))
        config.rope_parameters = {"rope_type": "default", "rope_theta": base}
    os.environ.update(engines.environment(settings))
    engine = await engines.start_engine(str(coder_model), settings)
    try:

        def fetcher(chunk: Any) -> Callable[[], Any]:
            async def fetch() -> Any:
                return chunk

            return fetch

        chunks = [fetcher(chunk) for chunk in pretrained_chunks(coder_model, "float32")]
        await engines.update_weights(engine, chunks, 1, dtype="float32", clear_cache=False)
        prompt = [5, 9, 20]
        request = GenerationRequest("long", np.array(prompt, np.int32), 90, 1.5, seed=1)
        [answer] = await engine.begin([request])
        generation = await answer
    finally:
        await engine.close()
    output = generation.output_ids.tolist()
    assert len(prompt) + len(output) > original
    network = AutoModelForCausalLM.from_pretrained(coder_model, config=config, dtype=torch.float32)
    with torch.no_grad():
        logits = network(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1] / 1.5
    expected = logits.log_softmax(-1).gather(1, torch.tensor(output)[:, None])[:, 0].numpy()
    np.testing.assert_allclose(generation.logprobs, expected, atol=1e-5)
