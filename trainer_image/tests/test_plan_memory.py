"""Memory of learners and engines against figures that were reckoned by hand for the published models."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcoder_contracts import learner_memory as memory_module
from deepcoder_contracts.learner_memory import (
    GB,
    checkpoint_bytes,
    export_memory,
    learner_memory,
    sequences_at_once,
)
from deepcoder_contracts.model_shape import KNOWN, kv_bytes_per_token, parameters
from deepcoder_contracts.recipe import Precision, Recipe
from deepcoder_trainer.export import prompts
from deepcoder_trainer.plan.document import Planned
from deepcoder_trainer.plan.splits import Question, changes_for_any, split, splits
from deepcoder_trainer.shapes import model_shape

CONFIG = KNOWN["hf://deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"]
QWEN_14B = model_shape(CONFIG)
GIB = 1 << 30


def of(ranks: int, context: int = 32768, **recipe: Any) -> memory_module.LearnerMemory:
    return learner_memory(QWEN_14B, Recipe(**recipe), ranks, context)


def test_parameters_of_the_published_models() -> None:
    assert parameters(QWEN_14B) == pytest.approx(14.77e9, rel=0.001)
    assert parameters(model_shape(KNOWN["hf://agentica-org/DeepScaleR-1.5B-Preview"])) == pytest.approx(
        1.78e9, rel=0.002
    )


@pytest.mark.parametrize(("ranks", "gigabytes"), [(8, 29.5), (16, 14.8), (24, 9.8), (32, 7.4)])
def test_weights_gradients_and_moments_are_16_bytes_a_parameter_over_all_ranks(ranks: int, gigabytes: float) -> None:
    assert of(ranks).state / GB == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize(
    ("context", "sp", "boundaries"),
    [(16384, 1, 8.4), (16384, 2, 4.2), (32768, 1, 15.9), (32768, 2, 8.0), (32768, 4, 4.0)],
)
def test_a_layer_keeps_its_input_and_as_much_again_for_its_attention(context: int, sp: int, boundaries: float) -> None:
    assert of(8, context, sequence_parallel=sp).kept / GIB == pytest.approx(2 * boundaries, rel=0.01)


@pytest.mark.parametrize(("context", "gib"), [(16384, 3.9), (32768, 7.4)])
def test_one_layer_at_a_time_is_computed_again_and_reckoned(context: int, gib: float) -> None:
    assert of(8, context).layer / GIB == pytest.approx(gib, rel=0.05)


def test_gathered_weights_and_the_checkpoint_are_as_large_as_their_tensors() -> None:
    assert of(8).gathered / GB == pytest.approx(1.1 + 3.1, rel=0.01)
    assert checkpoint_bytes(QWEN_14B) / GB == pytest.approx(177, rel=0.01)


@pytest.mark.parametrize(
    ("ranks", "sp", "offload", "gigabytes"),
    [(8, 2, False, 55), (8, 1, False, 70), (16, 1, True, 38), (16, 1, False, 55)],
)
def test_totals_at_34816_tokens_without_the_attentions_outputs(
    ranks: int, sp: int, offload: bool, gigabytes: float
) -> None:
    memory = of(ranks, sequence_parallel=sp, activation_offload=offload)
    attention = 0 if offload else memory.kept / 2
    assert (memory.total - attention) / GB == pytest.approx(gigabytes, rel=0.03)


def test_offloaded_activations_wait_on_the_host() -> None:
    assert of(8).host == 0
    assert of(8, activation_offload=True).host == of(8).kept


def test_a_reference_model_and_float32_take_more() -> None:
    assert of(8, kl_coefficient=0.1).state - of(8).state == 4 * parameters(QWEN_14B) / 8
    assert of(8, precision=Precision.FLOAT32).kept == 2 * of(8).kept


@pytest.mark.parametrize(
    ("model", "precision", "writing", "comparing"),
    [
        # By hand: of 275 million parameters a layer has 1.1 GB, of which three and 512 rows of 152,064 logits.
        ("DeepSeek-R1-Distill-Qwen-14B", Precision.BFLOAT16, 2 * 2.147, 3 * 1.101 + 0.311),
        # The embedding is more than a file should have, and has one of its own.
        ("DeepSeek-R1-Distill-Qwen-14B", Precision.FLOAT32, 2 * 3.114, 3 * 1.101 + 0.311),
        ("DeepSeek-R1-Distill-Qwen-1.5B", Precision.BFLOAT16, 2 * 2.147, 3 * 0.187 + 0.311),
    ],
)
def test_the_export_at_a_stages_end_takes_two_files_or_three_layers_of_the_first_learners_host(
    model: str, precision: Precision, writing: float, comparing: float
) -> None:
    shape = model_shape(KNOWN[f"hf://deepseek-ai/{model}"])
    found = export_memory(shape, Recipe(precision=precision))
    assert (found.writing / GB, found.comparing / GB) == pytest.approx((writing, comparing), rel=0.002)
    assert found.most == max(found.writing, found.comparing)


def test_a_small_model_is_one_file() -> None:
    shape = model_shape({**CONFIG, "num_hidden_layers": 1, "vocab_size": 1000})
    assert export_memory(shape, Recipe()).writing == 2 * 2 * parameters(shape)


def test_an_export_is_compared_on_as_many_tokens_as_are_reckoned_with() -> None:
    assert memory_module.COMPARED_TOKENS == prompts.COUNT * prompts.MOST_TOKENS


def test_keys_and_values_of_an_engine() -> None:
    assert kv_bytes_per_token(CONFIG, "bfloat16") == 196_608
    # 0.9 of 2 x 80 GB less 29.5 of weights and the slack, by 6.85 GB a sequence.
    assert sequences_at_once(QWEN_14B, CONFIG, Recipe(tensor_parallel=2), 32768, 80 * GB) == 15
    assert sequences_at_once(QWEN_14B, CONFIG, Recipe(), 32768, 30 * GB) == 0


def test_the_heads_tile_is_the_one_that_is_used() -> None:
    from deepcoder_trainer.grpo import logprob

    assert (memory_module.HEAD_ROWS, memory_module.HEAD_BLOCK) == (logprob.ROWS, logprob.BLOCK)


def question(memory: float, context: int, **recipe: Any) -> Question:
    document = {"model": {"uri": "/m"}, "recipe": recipe, "stages": [{"name": "long", "contextTokens": context}]}
    return Question(Planned.model_validate(document), CONFIG, memory * GB)


def applied(change: str) -> tuple[dict[str, Any], int | None]:
    """The settings that a change asks for, and the number of learners if it asks for another."""
    values: dict[str, Any] = {"true": True, "null": None}
    settings = {name: values.get(value, value) for name, value in re.findall(r"recipe\.(\w+): (\w+)", change)}
    learners = re.search(r"give it (\d+) learners", change)
    return settings, int(learners[1]) if learners else None


@given(
    st.sampled_from([24.0, 40.0, 80.0, 141.0]),
    st.sampled_from([8192, 32768, 65536]),
    st.sampled_from([1, 2, 3, 4, 6, 8, 16]),
    st.sampled_from([None, 140_000]),
)
def test_what_a_plan_says_to_change_makes_it_fit(
    memory: float, context: int, learners: int, tokens: int | None
) -> None:
    asked = question(memory, context, tokensPerDevice=tokens)
    for change in split(asked, learners, 8).changes:
        settings, more = applied(change)
        if "no number of learners" not in change:
            assert settings or more
            mended = question(memory, context, **{"tokensPerDevice": tokens, **settings})
            assert split(mended, more or learners, 8).changes == ()


def test_a_split_that_needs_nothing_says_nothing() -> None:
    assert split(question(80, 32768), 16, 16).changes == ()


def test_sampler_gpus_must_make_whole_engines() -> None:
    [change] = split(question(80, 32768, tensorParallel=2), 16, 5).changes
    assert change == "5 sampler GPUs do not divide into engines of recipe.tensorParallel 2: split them otherwise"


def test_ranks_that_cannot_share_sequences_are_named() -> None:
    [change] = split(question(80, 8192, sequenceParallel=4), 6, 8).changes
    assert "recipe.sequenceParallel is 4, but there are 6 learners: set it to 1 or 2, or give" in change


@pytest.mark.parametrize(
    ("memory", "context", "message"),
    [
        (30, 32768, "set recipe.tensorParallel: 2"),
        (6, 32768, "stages[long].contextTokens 32768: lower it, or use GPUs with more memory"),
        (80, 140_000, "the model has 131072 positions"),
    ],
)
def test_what_no_split_can_mend_is_said_once(memory: float, context: int, message: str) -> None:
    assert any(message in change for change in changes_for_any(question(memory, context)))


def test_each_stage_is_held_to_the_positions_that_it_has() -> None:
    stages = [
        {"name": "train", "contextTokens": 32768},
        {"name": "far", "type": "Evaluate", "contextTokens": 200_000, "rope": {"type": "Yarn", "factor": 2}},
        {"name": "farther", "type": "Evaluate", "contextTokens": 300_000, "rope": {"type": "Yarn", "factor": 2}},
    ]
    planned = Planned.model_validate({"model": {"uri": "/m"}, "stages": stages, "recipe": {"tensorParallel": 8}})
    [change] = changes_for_any(Question(planned, CONFIG, 141 * GB))
    assert change.startswith("stages[farther].contextTokens is 300000")
    assert "262144 positions" in change


def one_card(memory: float, context: int = 32768, **recipe: Any) -> Question:
    """The 1.5B with sampler and learner in turns."""
    config = KNOWN["hf://agentica-org/DeepScaleR-1.5B-Preview"]
    stages = [{"name": "long", "contextTokens": context, "placement": "Colocated"}]
    document = {"model": {"uri": "/m"}, "recipe": {"maxOffPolicy": 0, **recipe}, "stages": stages}
    return Question(Planned.model_validate(document), config, memory * GB)


def test_one_80_gb_card_is_enough_for_the_1_5b_in_turns() -> None:
    asked = one_card(80)
    assert changes_for_any(asked) == []
    [way] = splits(asked, 1)
    assert (way.learners, way.sampler_gpus, way.changes) == (1, 1, ())
    assert way.memory is not None
    # Alone: 46. A sleeping engine's context comes on top, and not its weights, keys and values.
    alone = learner_memory(asked.shape, asked.recipe, 1, 32768)
    assert way.memory.total == alone.total + memory_module.SLEEPING
    assert way.memory.host == 12 * parameters(asked.shape)
    assert [(w.learners, w.sampler_gpus) for w in splits(asked, 8)] == [(8, 8)]


def test_the_worst_of_the_phases_counts() -> None:
    asked = one_card(80, 64)
    short = learner_memory(asked.shape, asked.recipe, 8, 64, colocated=True)
    kept = short.state + max(short.kept + short.layer + short.gathered + short.gradients + short.head, short.root)
    assert short.push == pytest.approx(12 * parameters(asked.shape) / 8 + 2 * (2 * parameters(asked.shape)), rel=0.1)
    assert short.total == max(kept, short.push) + short.beside + memory_module.SLACK
    huge = learner_memory(QWEN_14B, Recipe(), 64, 64, colocated=True)
    assert huge.total == huge.push + huge.beside + memory_module.SLACK, "whole weights twice are more than a shard"


def test_what_does_not_fit_beside_a_learner_is_said() -> None:
    assert any("beside a learner" in change for change in changes_for_any(one_card(9.5)))
    [change] = splits(one_card(24), 1)[0].changes
    assert change.startswith(("set recipe.", "give it"))
    assert any("set maxOffPolicy: 0" in change for change in changes_for_any(one_card(80, maxOffPolicy=1)))
