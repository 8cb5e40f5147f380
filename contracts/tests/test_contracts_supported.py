"""One list of what is not supported yet, with the field and the mend."""

from typing import Any

import pytest
from pydantic import ValidationError

from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import StageSettings
from deepcoder_contracts.supported import model_refusals, quantized_refusals, stage_refusals


def stage(**changes: Any) -> StageSettings:
    settings = {"name": "16k", "index": 0, "type": "Train", "contextTokens": 16384, "maxSteps": 1, **changes}
    return StageSettings.model_validate(settings)


def test_the_published_recipe_and_its_ablations_are_supported() -> None:
    assert not list(stage_refusals(Recipe(), stage(), "stages[16k]"))
    ablations = Recipe(
        kl_coefficient=0.001, importance="Off", activation_offload=True, entropy_coefficient=0.01, refill=True
    )
    assert not list(stage_refusals(ablations, stage(), "stages[16k]"))


def test_devices_that_are_shared_are_for_synchronous_training_with_one_device_an_engine() -> None:
    colocated = stage(placement="Colocated")
    assert not list(stage_refusals(Recipe(max_off_policy=0), colocated, "stages[16k]"))
    [overlap] = stage_refusals(Recipe(), colocated, "stages[16k]")
    assert overlap.field == "stages[16k].placement"
    assert "set maxOffPolicy: 0" in overlap.message
    [wide] = stage_refusals(Recipe(max_off_policy=0, tensor_parallel=2), colocated, "stages[16k]")
    assert wide.field == "recipe.tensorParallel"
    assert "set tensorParallel: 1" in wide.message
    evaluate = {"datasets": [{"name": "held-back", "uri": "/data.jsonl"}]}
    evaluation = stage(type="Evaluate", maxSteps=0, placement="Colocated", evaluate=evaluate)
    assert not list(stage_refusals(Recipe(), evaluation, "stages[16k]"))


def test_each_learner_on_a_shared_device_has_a_sampler_of_its_own() -> None:
    assert stage(placement="Colocated", resources={"learners": 4, "samplers": 4}).colocated
    with pytest.raises(ValidationError, match=r"4 learners and 1 samplers: set resources\.samplers"):
        stage(placement="Colocated", resources={"learners": 4})


def test_dynamic_positions_are_for_evaluations_alone() -> None:
    evaluate = {"type": "Evaluate", "maxSteps": 0, "evaluate": {"datasets": [{"name": "held", "uri": "/data.jsonl"}]}}
    dynamic = {"rope": {"type": "Dynamic", "factor": 4}}
    [refusal] = stage_refusals(Recipe(), stage(**dynamic), "stages[16k]")
    assert refusal.field == "stages[16k].rope"
    assert "use Yarn" in refusal.message
    assert not list(stage_refusals(Recipe(), stage(**dynamic, **evaluate), "stages[16k]"))
    assert not list(stage_refusals(Recipe(), stage(rope={"type": "Yarn", "factor": 4}), "stages[16k]"))


def test_a_micro_batch_must_hold_the_longest_sequence() -> None:
    longest = 2048 + 16384
    [refusal] = stage_refusals(Recipe(tokens_per_device=longest - 1), stage(), "stages[16k]")
    assert (refusal.field, str(longest) in refusal.message) == ("recipe.tokensPerDevice", True)
    assert not list(stage_refusals(Recipe(tokens_per_device=longest), stage(), "stages[16k]"))


def test_devices_that_share_a_sequence_each_hold_their_part_of_it() -> None:
    assert not list(stage_refusals(Recipe(tokens_per_device=9216, sequence_parallel=2), stage(), "stages[16k]"))
    [refusal] = stage_refusals(Recipe(tokens_per_device=9215, sequence_parallel=2), stage(), "stages[16k]")
    assert "9216 on each of sequenceParallel = 2 devices: raise it to at least 9216" in refusal.message


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"])
def test_dense_decoders_are_supported(architecture: str) -> None:
    assert not list(model_refusals({"architectures": [architecture]}))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel, which is not supported"),
        ({}, "not named"),
        ({"architectures": ["Qwen2ForCausalLM"], "num_experts": 8}, "mixture of experts (num_experts)"),
        ({"architectures": ["MixtralForCausalLM"]}, "mixture of experts (MixtralForCausalLM)"),
    ],
)
def test_other_models_are_refused_by_name(config: dict[str, Any], words: str) -> None:
    [refusal] = model_refusals(config)
    assert refusal.field == "model.uri"
    assert words in refusal.message


@pytest.mark.parametrize(("config", "method"), [({"quant_method": "awq"}, "awq"), ({"bits": 4}, "of no named method")])
def test_a_quantized_model_is_refused_with_its_method(config: dict[str, Any], method: str) -> None:
    [refusal] = quantized_refusals({"quantization_config": config}, "hf://a/b")
    assert refusal.field == "model.uri"
    assert f"the model at hf://a/b is quantized (quantization_config in its config.json: {method})" in refusal.message
    assert not list(quantized_refusals({"quantization_config": None}, "hf://a/b"))
