"""Two ranks that share rows of tokens, two that do not, and one alone: the same gradients, sums and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from gloo_ranks import GlooRanks, Place

from deepcoder_contracts.recipe import Recipe
from deepcoder_trainer.grpo.pack import OptimizerStep, assemble, cut
from deepcoder_trainer.learner.group import combine, plan_batch
from deepcoder_trainer.types import Batch

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2, tied, heads 4/2": ("Qwen2", {}),
    "Qwen2, untied, heads 4/1": ("Qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    "Qwen3, tied, heads 4/2": ("Qwen3", {"head_dim": 8}),
    "Llama, untied, heads 4/4": ("Llama", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
}

Gradients = dict[str, np.ndarray]


@contextmanager
def float64() -> Iterator[None]:
    """FSDP leaves the parameters' number format alone, and with it that of the computation."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    as_it_is = MixedPrecisionPolicy()
    with mock.patch("deepcoder_trainer.learner.model.MixedPrecisionPolicy", return_value=as_it_is):
        yield


def start(place: Place | None, directory: Path, recipe: Recipe) -> Any:
    from deepcoder_trainer.learner.rank import LearnerRank
    from deepcoder_trainer.learner.rank_settings import RankSettings

    settings = RankSettings(
        model_dir=str(directory),
        recipe=recipe,
        run_seed=0,
        accelerators=False,
        threads=1,
        collective_timeout_s=240,
    )
    return (
        LearnerRank(settings, 0, 1) if place is None else LearnerRank(settings, place.rank, place.world, place.store())
    )


def gradients(
    place: Place | None,
    directory: Path,
    recipe: Recipe,
    plans: Sequence[Sequence[OptimizerStep]],
    wide: bool,
    recompute: dict[str, bool] | None = None,
) -> tuple[Gradients, float]:
    """Whole gradients of the first optimizer step, and this rank's sum of the loss."""
    from torch.distributed.tensor import DTensor

    from deepcoder_trainer.learner.activations import prepare

    with float64() if wide else nullcontext():
        learner = start(place, directory, recipe)
        try:
            if wide:
                learner.policy.double()
            if recompute is not None:
                prepare(learner.policy, small=0, **recompute)
            totals: dict[str, Any] = {}
            learner.accumulate(plans[place.rank if place else 0][0], totals)
            found = {}
            for name, parameter in learner.policy.named_parameters():
                grad = parameter.grad
                found[name] = (grad.full_tensor() if isinstance(grad, DTensor) else grad).double().numpy()
            return found, float(totals["loss"][0] if isinstance(totals["loss"], list) else totals["loss"])
        finally:
            learner.close()


def assert_equal(found: Gradients, expected: Gradients, tolerance: float) -> None:
    norm = float(np.sqrt(sum((g**2).sum() for g in expected.values())))
    assert norm > 1e-3
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert np.linalg.norm(found[name] - gradient) <= tolerance * norm, name


@pytest.fixture
def recipes(make_recipe: Callable[..., Recipe]) -> dict[str, Recipe]:
    """By the layout of two ranks."""
    return {layout: make_recipe(optimizer_steps=1, sequence_parallel=sp) for layout, sp in (("dp", 1), ("sp", 2))}


@pytest.mark.parametrize("layout", ["dp", "sp"])
@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_have_the_gradients_of_one_however_sequences_are_packed(
    model: str,
    layout: str,
    recipes: dict[str, Recipe],
    make_batch: Callable[..., Batch],
    tiny_model: Callable[..., Path],
    two_ranks: GlooRanks,
) -> None:
    directory = tiny_model(MODELS[model][0], **MODELS[model][1])
    batch = make_batch(seed=5, quarantined=0.1)
    alone, loss = gradients(None, directory, recipes["dp"], plan_batch(batch, recipes["dp"], 300, 1), True)
    # Rows of one sequence or two, against one row of them all.
    answers = two_ranks.run(gradients, directory, recipes[layout], plan_batch(batch, recipes[layout], 21, 2), True)
    for found, _ in answers:
        assert_equal(found, alone, 1e-9)
    assert sum(part for _, part in answers) == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize("layout", ["dp", "sp"])
@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_have_the_gradients_of_one_in_float32_too(
    model: str,
    layout: str,
    recipes: dict[str, Recipe],
    make_batch: Callable[..., Batch],
    tiny_model: Callable[..., Path],
    two_ranks: GlooRanks,
) -> None:
    directory = tiny_model(MODELS[model][0], **MODELS[model][1])
    batch = make_batch(seed=5)
    plans = plan_batch(batch, recipes[layout], 21, 2)
    if layout == "dp":
        [first], [second] = plans
        same_rows = OptimizerStep(first.micro_batches + second.micro_batches, first.denominator)
    else:
        [[same_rows]] = plan_batch(batch, recipes["dp"], 42, 1)
    alone, _ = gradients(None, directory, recipes["dp"], [[same_rows]], False)
    for found, _ in two_ranks.run(gradients, directory, recipes[layout], plans, False):
        assert_equal(found, alone, 1e-6)


def test_a_slice_without_a_response_token_and_a_row_without_any_take_part(
    recipes: dict[str, Recipe], make_batch: Callable[..., Batch], tiny_model: Callable[..., Path], two_ranks: GlooRanks
) -> None:
    batch = make_batch(seed=6, longest=2)
    plans = plan_batch(batch, recipes["sp"], 5, 2)
    rows = [plans[rank][0].micro_batches for rank in range(2)]
    assert any(not len(m.targets) for m in rows[0])
    nothing = assemble([])
    plans = [
        [OptimizerStep((*step.micro_batches, cut(nothing, rank, 2)), step.denominator)]
        for rank, [step] in enumerate(plans)
    ]
    alone, loss = gradients(None, tiny_model(), recipes["dp"], plan_batch(batch, recipes["dp"], 64, 1), True)
    answers = two_ranks.run(gradients, tiny_model(), recipes["sp"], plans, True)
    assert_equal(answers[0][0], alone, 1e-9)
    assert sum(part for _, part in answers) == pytest.approx(loss, rel=1e-9)


@pytest.fixture
def four_ranks(two_ranks: GlooRanks, tmp_path: Path) -> Iterator[GlooRanks]:
    two_ranks.close()  # their memory
    ranks = GlooRanks(4, tmp_path)
    yield ranks
    ranks.close()


def test_two_groups_of_two_ranks_and_one_of_four_have_the_gradients_of_one(
    make_recipe: Callable[..., Recipe],
    make_batch: Callable[..., Batch],
    tiny_model: Callable[..., Path],
    four_ranks: GlooRanks,
) -> None:
    batch = make_batch(seed=8, quarantined=0.1)
    one = make_recipe(optimizer_steps=1)
    alone, loss = gradients(None, tiny_model(), one, plan_batch(batch, one, 64, 1), True)
    for sp in (2, 4):
        recipe = make_recipe(optimizer_steps=1, sequence_parallel=sp)
        answers = four_ranks.run(gradients, tiny_model(), recipe, plan_batch(batch, recipe, 11, 4), True)
        assert_equal(answers[0][0], alone, 1e-9)
        assert sum(part for _, part in answers) == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize(
    "recompute",
    [
        {"keep_attention": False, "offload": False},
        {"keep_attention": True, "offload": False},
        {"keep_attention": True, "offload": True},
    ],
    ids=["recomputed", "attention kept", "offloaded"],
)
def test_layers_that_are_computed_twice_exchange_twice_and_give_the_same_bits(
    recompute: dict[str, bool],
    recipes: dict[str, Recipe],
    make_batch: Callable[..., Batch],
    tiny_model: Callable[..., Path],
    two_ranks: GlooRanks,
) -> None:
    plans = plan_batch(make_batch(seed=7), recipes["sp"], 21, 2)
    [once, _] = two_ranks.run(gradients, tiny_model(), recipes["sp"], plans, False)
    [twice, _] = two_ranks.run(gradients, tiny_model(), recipes["sp"], plans, False, recompute)
    for name, value in once[0].items():
        np.testing.assert_array_equal(twice[0][name], value, err_msg=name)


def trained(
    place: Place | None, directory: Path, recipe: Recipe, load: Path | None, steps: Sequence[Any], save: Path | None
) -> tuple[list[Any], Gradients]:
    """Sums of each training step, and the whole weights after them (on rank 0)."""
    learner = start(place, directory, recipe)
    try:
        if load is not None:
            learner.load(load, optimizer=True)
        sums = [learner.train(plans[place.rank if place else 0]) for plans in steps]
        if save is not None:
            learner.save(save)
            learner.saved(save).files()
        return sums, {name: value.float().numpy().copy() for name, value in learner.weights()}
    finally:
        learner.close()


@pytest.mark.parametrize(
    "switches",
    [{}, {"old_logprobs": "Recompute"}, {"kl_coefficient": 0.1, "activation_offload": True}],
    ids=["behaviour", "recompute", "reference, offloaded"],
)
def test_ranks_that_share_rows_train_like_one_and_their_checkpoint_loads_in_one(
    switches: dict[str, Any],
    make_recipe: Callable[..., Recipe],
    make_batch: Callable[..., Batch],
    tiny_model: Callable[..., Path],
    two_ranks: GlooRanks,
    tmp_path: Path,
) -> None:
    one, two = make_recipe(**switches), make_recipe(sequence_parallel=2, **switches)
    batches = [make_batch(seed) for seed in range(3)]
    saved = tmp_path / "from-two"
    steps = [plan_batch(batch, two, 32, 2) for batch in batches]
    answers = two_ranks.run(trained, tiny_model(), two, None, steps[:2], saved)
    alone = [plan_batch(batch, one, 64, 1) for batch in batches]
    expected, weights = trained(None, tiny_model(), one, None, alone[:2], None)
    for step in range(2):
        found, wanted = combine([answers[rank][0][step] for rank in range(2)]), combine([expected[step]])
        for name in ("loss", "grad_norm", "entropy", "mismatch_kl"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-6), name
        assert found["tokens_trained"] == wanted["tokens_trained"]
    for name, value in weights.items():
        np.testing.assert_allclose(answers[0][1][name], value, atol=2e-5, err_msg=name)

    _, loaded = trained(None, tiny_model(), one, saved, [], None)
    for name, value in answers[0][1].items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)
    # The optimizer came along: the next step takes both to the same place.
    _, after = trained(None, tiny_model(), one, saved, alone[2:], None)
    [(_, goes_on), _] = two_ranks.run(trained, tiny_model(), two, saved, steps[2:], None)
    for name, value in after.items():
        np.testing.assert_allclose(goes_on[name], value, atol=2e-5, err_msg=name)


def test_in_bfloat16_ranks_that_share_rows_repeat_themselves_to_the_bit(
    make_recipe: Callable[..., Recipe],
    make_batch: Callable[..., Batch],
    tiny_model: Callable[..., Path],
    two_ranks: GlooRanks,
) -> None:
    recipe = make_recipe(sequence_parallel=2, precision="BFloat16")
    steps = [plan_batch(make_batch(), recipe, 32, 2)]
    [(first, before), _] = two_ranks.run(trained, tiny_model(), recipe, None, steps, None)
    [(again, after), _] = two_ranks.run(trained, tiny_model(), recipe, None, steps, None)
    assert first[0]["grad_norm"] == again[0]["grad_norm"]
    assert first[0]["grad_norm"][0] > 0
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
