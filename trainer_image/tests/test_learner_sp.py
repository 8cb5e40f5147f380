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
from deepcoder_trainer.grpo.pack import OptimizerStep
from deepcoder_trainer.learner.group import plan_batch
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
    from deepcoder_trainer.learner.wire import RankSettings

    settings = RankSettings(
        model_dir=str(directory),
        recipe=recipe,
        run_seed=0,
        accelerators=False,
        threads=1,
        collective_timeout_s=60,
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
