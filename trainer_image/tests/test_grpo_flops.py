"""The cost formula against the models' own parameters and against figures computed elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deepcoder_contracts.model_shape import ModelShape, sp_refusals
from deepcoder_trainer.grpo.flops import sequence_flops
from deepcoder_trainer.grpo.summary import AGREED, GAP_BINS, LARGEST, combine
from deepcoder_trainer.modelconfig import read_model_config

QWEN_14B = ModelShape(48, 5120, 13824, 40, 8, 128, 152064, tied=False)
QWEN_1_5B = ModelShape(28, 1536, 8960, 12, 2, 128, 151936, tied=True)


@pytest.mark.parametrize(
    ("shape", "tokens", "expected"),
    [(QWEN_14B, 34816, 4.71e15), (QWEN_1_5B, 18432, 2.58e14), (QWEN_1_5B, 34816, 6.35e14)],
)
def test_cost_of_the_models_that_are_shipped_for(shape: ModelShape, tokens: int, expected: float) -> None:
    assert sequence_flops(shape, tokens) == pytest.approx(expected, rel=0.005)


def test_the_head_costs_only_where_a_token_is_predicted() -> None:
    difference = sequence_flops(QWEN_14B, 1000) - sequence_flops(QWEN_14B, 1000, 600)
    assert difference == 6 * 400 * QWEN_14B.head_matrix


SUMMED = (
    "tokens", "loss", "entropy", "ratio", "advantage", "ratio_below_clip", "ratio_above_clip", "clipped_low",
    "clipped_high", "mismatch_kl", "logprob_gap",
)  # fmt: skip


def answer(seconds: float, flops: float, peak: float) -> dict[str, list[float]]:
    """What one rank reports of a step."""
    figures = dict.fromkeys(SUMMED, 3.0) | dict.fromkeys(AGREED, 0.5) | dict.fromkeys(LARGEST, seconds)
    figures |= {"model_flops": flops, "peak_flops": peak}
    return {name: [value] for name, value in figures.items()} | {"gap_histogram": [1.0] * GAP_BINS}


def test_utilisation_is_what_all_ranks_computed_of_what_their_cards_could_in_the_time_of_the_slowest() -> None:
    metrics = combine([answer(2.0, 3e12, 1e12), answer(4.0, 1e12, 1e12)])
    assert metrics["mfu_ratio"] == pytest.approx(4e12 / (2e12 * 4.0))
    assert (metrics["update_seconds"], metrics["grad_norm"], metrics["tokens_trained"]) == (4.0, 0.5, 6.0)
    assert "mfu_ratio" not in combine([answer(2.0, 3e12, 0.0)]), "what a CPU can do is not known"


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [("Qwen2", {}), ("Qwen3", {"head_dim": 16}), ("Llama", {"tie_word_embeddings": False, "num_key_value_heads": 1})],
)
def test_a_shape_counts_the_matrices_of_the_real_model(
    architecture: str, overrides: dict, tiny_model: Callable
) -> None:
    from transformers import AutoModelForCausalLM

    directory = tiny_model(architecture, **overrides)
    shape = ModelShape.of(read_model_config(directory))
    model = AutoModelForCausalLM.from_pretrained(directory)
    layer = sum(p.numel() for p in model.model.layers[0].parameters() if p.ndim == 2)
    assert shape.layer_matrices == layer
    assert shape.head_matrix == model.lm_head.weight.numel()
    assert shape.tied == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert shape.layers == len(model.model.layers)


@pytest.mark.parametrize(
    ("shape", "possible"),
    [(QWEN_14B, [1, 2, 4, 8]), (QWEN_1_5B, [1, 2, 4, 6]), (ModelShape(2, 32, 48, 4, 1, 8, 96, tied=True), [1, 2, 4])],
)
def test_heads_that_do_not_divide_are_refused_with_the_degrees_that_do(shape: ModelShape, possible: list[int]) -> None:
    refused = {sp: [*sp_refusals(shape, sp)] for sp in range(1, 9)}
    assert [sp for sp, refusals in refused.items() if not refusals] == possible
    [refusal] = refused[7]
    assert refusal.field == "recipe.sequenceParallel"
    assert f"over {', '.join(map(str, possible))} ranks" in refusal.message


def test_a_config_that_leaves_a_size_out_is_named() -> None:
    with pytest.raises(ValueError, match="does not say intermediate_size, vocab_size"):
        ModelShape.of({"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 32})
