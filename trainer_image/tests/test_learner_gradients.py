"""A training step against the definition in float64, for every switch: equal to 1e-9 of the gradient's norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from grpo_reference import Reference, assert_same_gradients, both_gradients, exact_ranks, near_policy
from lazy_modules import LazyModule

from deepcoder_trainer.learner.group import plan_batch

torch = LazyModule("torch")

SWITCHES: dict[str, dict[str, Any]] = {
    "recipe": {},
    "mean only": {"advantage": "MeanOnly"},
    "drop from mask": {"overlong": "DropFromMask"},
    "overlong off": {"overlong": "Off"},
    "cispo": {"loss": "Cispo"},
    "recompute": {"old_logprobs": "Recompute"},
    "behaviour, low cap": {"tis_cap": 1.1},
    "behaviour, cap within the clip range, cispo": {"loss": "Cispo", "tis_cap": 1.1},
    "cispo recompute": {"loss": "Cispo", "old_logprobs": "Recompute", "tis_cap": 1.5},
    "entropy": {"entropy_coefficient": 0.05},
    "synchronous": {"max_off_policy": 0},
    "tight clip": {"clip_low": 0.01, "clip_high": 0.02},
    "published": {"max_off_policy": 0, "importance": "Off"},
    "against the sampler, not weighted": {"importance": "Off"},
    "everything at once": {
        "advantage": "MeanOnly",
        "overlong": "DropFromMask",
        "loss": "Cispo",
        "old_logprobs": "Recompute",
        "tis_cap": 1.2,
        "entropy_coefficient": 0.1,
        "temperature": 1.3,
    },
}
ARCHITECTURES = {
    "Qwen2, tied": ("Qwen2", {}),
    "Qwen2, untied": ("Qwen2", {"tie_word_embeddings": False}),
    "Qwen3": ("Qwen3", {"head_dim": 8}),
    "Llama": ("Llama", {"tie_word_embeddings": False}),
}


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    return exact_ranks(monkeypatch)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES.keys())
def test_gradients_equal_the_reference_for_every_switch(
    switches: dict[str, Any],
    seed: int,
    make_recipe: Callable,
    make_batch: Callable,
    make_learner: Callable,
    tiny_model: Callable,
    exact: Callable,
) -> None:
    recipe = make_recipe(optimizer_steps=1, **switches)
    behaviour = near_policy(tiny_model(), recipe, seed)
    batch = make_batch(seed=seed + 1, groups=4, size=4, quarantined=0.1, behaviour=behaviour)
    learner = exact(make_learner(recipe).rank)
    expected = both_gradients(learner, Reference(tiny_model(), recipe), batch, recipe)
    assert_same_gradients(learner.policy, expected, 1e-9)


@pytest.mark.parametrize(("name", "overrides"), ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_gradients_equal_the_reference_for_every_architecture(
    name: str,
    overrides: dict[str, Any],
    make_recipe: Callable,
    make_batch: Callable,
    make_learner: Callable,
    tiny_model: Callable,
    exact: Callable,
) -> None:
    directory, recipe = tiny_model(name, **overrides), make_recipe(optimizer_steps=1)
    batch = make_batch(seed=5, behaviour=near_policy(directory, recipe))
    learner = exact(make_learner(recipe, model=directory).rank)
    expected = both_gradients(learner, Reference(directory, recipe), batch, recipe)
    assert_same_gradients(learner.policy, expected, 1e-9)


@pytest.mark.parametrize(
    "switches",
    [{}, {"max_off_policy": 0, "entropy_coefficient": 0.02}, {"loss": "Cispo"}],
    ids=["recipe", "synchronous, entropy", "cispo"],
)
def test_gradients_with_a_divergence_equal_the_reference(
    switches: dict[str, Any],
    make_recipe: Callable,
    make_batch: Callable,
    make_learner: Callable,
    tiny_model: Callable,
    exact: Callable,
) -> None:
    recipe = make_recipe(optimizer_steps=1, kl_coefficient=0.5, **switches)
    batch = make_batch(seed=7, behaviour=near_policy(tiny_model(), recipe))
    learner, reference = exact(make_learner(recipe).rank), Reference(tiny_model(), recipe)
    reference.start = Reference(tiny_model(), recipe)
    torch.manual_seed(0)
    with torch.no_grad():  # training has moved the policy
        for name, parameter in reference.model.named_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) * parameter.std())
            dict(learner.policy.named_parameters())[name].copy_(parameter)
    expected = both_gradients(learner, reference, batch, recipe)
    assert_same_gradients(learner.policy, expected, 1e-9)


def test_gradients_in_float32_equal_the_reference_too(
    make_recipe: Callable, make_batch: Callable, make_learner: Callable, tiny_model: Callable
) -> None:
    recipe = make_recipe(optimizer_steps=1)
    batch = make_batch(seed=1, behaviour=near_policy(tiny_model(), recipe))
    learner = make_learner(recipe).rank
    expected = both_gradients(learner, Reference(tiny_model(), recipe), batch, recipe)
    assert_same_gradients(learner.policy, expected, 2e-6)


@pytest.mark.parametrize("switches", [{}, {"old_logprobs": "Recompute"}], ids=["behaviour", "recompute"])
def test_a_step_of_two_updates_moves_the_weights_like_the_reference(
    switches: dict[str, Any],
    make_recipe: Callable,
    make_batch: Callable,
    make_learner: Callable,
    tiny_model: Callable,
    exact: Callable,
) -> None:
    recipe = make_recipe(**switches)
    batch = make_batch(seed=2, behaviour=near_policy(tiny_model(), recipe))
    learner, reference = exact(make_learner(recipe).rank), Reference(tiny_model(), recipe)
    [plan] = plan_batch(batch, recipe, 64, 1)
    learner.train(plan)
    reference.train(batch)
    expected = dict(reference.model.named_parameters())
    start = dict(Reference(tiny_model(), recipe).model.named_parameters())
    for name, value in learner.weights(torch.float64):
        moved = (expected[name] - start[name]).detach()
        assert float((value - expected[name].detach()).norm()) <= 1e-7 * float(moved.norm()), name
        assert float(moved.norm()) > 0


@pytest.mark.parametrize("capacity", [21, 40, 1000])
def test_gradients_do_not_depend_on_packing_or_micro_batching(
    capacity: int, make_recipe: Callable, make_batch: Callable, make_learner: Callable, exact: Callable
) -> None:
    recipe = make_recipe(optimizer_steps=1)
    batch = make_batch(seed=3)
    gradients = []
    for budget in (capacity, 64):
        learner = exact(make_learner(recipe).rank)
        [[step]] = plan_batch(batch, recipe, budget, 1)
        learner.accumulate(step, {})
        gradients.append(torch.cat([p.grad.flatten() for p in learner.policy.parameters()]))
    assert float((gradients[0] - gradients[1]).norm()) <= 1e-9 * float(gradients[1].norm())
