"""What cannot work is refused before anything starts: lengths past the model's positions, what does not divide."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from deepcoder_contracts.model_shape import KNOWN, positions
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.plan.check import check

QWEN_14B = {**KNOWN["hf://deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"], "max_position_embeddings": 32768}


def stage(config: StageConfig, **changes: Any) -> StageConfig:
    return config.model_copy(update={"stage": config.stage.model_copy(update=changes)})


def with_recipe(config: StageConfig, **changes: Any) -> StageConfig:
    return config.model_copy(update={"recipe": Recipe.model_validate({**config.recipe.model_dump(), **changes})})


@pytest.fixture
def config(make_config: Callable[..., StageConfig]) -> StageConfig:
    made = make_config()
    made = made.model_copy(update={"longest_context_tokens": 16384})
    return with_recipe(stage(made, context_tokens=16384), max_prompt_tokens=2048, tokens_per_device=None)


def test_what_fits_passes(config: StageConfig) -> None:
    check(config, QWEN_14B)
    check(stage(config, context_tokens=30720), QWEN_14B)


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "compressed-tensors"])
def test_a_quantized_model_is_refused_before_its_packed_weights_are_rounded_to_something_else(
    config: StageConfig, method: str
) -> None:
    with pytest.raises(BadConfig, match=f"quantized .*: {method}.*: use the model that it was made from") as caught:
        check(config, {**QWEN_14B, "quantization_config": {"quant_method": method}})
    assert caught.value.field == "model.uri"


def test_a_length_past_the_models_positions_names_field_value_and_mend(config: StageConfig) -> None:
    with pytest.raises(BadConfig, match=r"has 32768 positions .*: set it to at most 30720, or") as caught:
        check(stage(config, context_tokens=30721), QWEN_14B)
    assert caught.value.field == f"stages[{config.stage.name}].contextTokens"
    assert f"{caught.value.field} is 30721: with recipe.maxPromptTokens 2048" in str(caught.value)


def test_a_longer_evaluation_is_named_by_its_own_field(config: StageConfig) -> None:
    longer = config.model_copy(update={"longest_context_tokens": 65536})
    with pytest.raises(BadConfig, match=r"evaluate\.contextTokens is 65536") as caught:
        check(longer, QWEN_14B)
    assert caught.value.field == f"stages[{config.stage.name}].evaluate.contextTokens"


def test_where_the_prompt_alone_is_too_long_the_prompt_is_to_be_shorter(config: StageConfig) -> None:
    with pytest.raises(BadConfig, match=r"lower recipe\.maxPromptTokens below 1024"):
        check(config, {**QWEN_14B, "max_position_embeddings": 1024})


@pytest.mark.parametrize(
    ("fields", "reached"),
    [
        ({}, math.inf),
        ({"max_position_embeddings": 4096}, 4096),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 16384, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_scaling": None, "model_max_length": 8192}, 8192),
    ],
)
def test_positions_are_reckoned_as_the_engine_does(fields: dict[str, Any], reached: float) -> None:
    assert positions(fields) == reached


def test_ranks_and_heads_must_divide_and_all_faults_are_named_at_once(config: StageConfig) -> None:
    learners = config.stage.resources.model_copy(update={"learners": 6})
    odd = with_recipe(stage(config, resources=learners), sequence_parallel=4, tensor_parallel=3)
    with pytest.raises(BadConfig) as caught:
        check(odd, QWEN_14B)
    assert str(caught.value).splitlines() == [
        "recipe.tensorParallel is 3, but the model has 40 attention heads and 8 key-value heads, which divide over "
        "1, 2, 4, 8 devices: set it to one of these",
        "recipe.sequenceParallel is 4, but there are 6 learners: set it to 1 or 2, or give the stage "
        "another number of learners",
    ]


def test_a_model_without_sizes_is_refused(config: StageConfig) -> None:
    with pytest.raises(BadConfig, match="does not say num_hidden_layers") as caught:
        check(config, {k: v for k, v in QWEN_14B.items() if k != "num_hidden_layers"})
    assert caught.value.field == "model.uri"
