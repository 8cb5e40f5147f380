"""What only a CUDA card can show of the learner: its kernels, streams and allocator. Skipped elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from lazy_modules import LazyModule

from deepcoder_trainer.learner.group import plan_batch

if TYPE_CHECKING:
    from deepcoder_trainer.learner.rank import LearnerRank

torch = LazyModule("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]


@pytest.fixture
def make_rank(make_recipe: Callable, make_learner: Callable) -> Callable[..., Any]:
    """A rank on the card, in bfloat16; without recomputation unless a test prepares it."""
    from deepcoder_trainer.learner.rank import LearnerRank

    made: list[LearnerRank] = []

    def make(**recipe: Any) -> LearnerRank:
        settings = make_learner(make_recipe(optimizer_steps=1, precision="Float32")).rank.settings
        recipe = make_recipe(optimizer_steps=1, precision="BFloat16", deterministic=True, **recipe)
        made.append(LearnerRank(replace(settings, recipe=recipe, accelerators=True), 0, 1))
        for layer in made[-1].policy.model.layers:
            layer.gradient_checkpointing = False
        return made[-1]

    yield make
    for rank in made:
        rank.close()
    torch.use_deterministic_algorithms(False)


def gradient(rank: LearnerRank, step: Any) -> torch.Tensor:
    rank.policy.zero_grad()
    rank.accumulate(step, {})
    return torch.cat([p.grad.full_tensor().flatten() for p in rank.policy.parameters()])


def test_the_head_sums_in_float32() -> None:
    from deepcoder_trainer.grpo.logprob import linear_logprob

    torch.manual_seed(0)
    hidden = torch.randn(300, 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn(1000, 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
    targets = torch.randint(0, 1000, (300,), device="cuda")
    logprob, _ = linear_logprob(hidden, weight, targets, 0.6, rows=128, block=256)
    exact = torch.log_softmax(hidden.double() @ weight.double().T / 0.6, -1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprob.double(), exact, rtol=0, atol=2e-5)
    ours = torch.autograd.grad(logprob.sum(), (hidden, weight))
    expected = torch.autograd.grad(exact.sum(), (hidden, weight))
    for a, b in zip(ours, expected, strict=True):
        assert float((a.double() - b.double()).norm()) <= 0.01 * float(b.double().norm())


@pytest.mark.parametrize("offload", [False, True])
def test_kept_and_offloaded_activations_give_the_same_gradient_to_the_bit(
    offload: bool, make_rank: Callable, make_batch: Callable
) -> None:
    from deepcoder_trainer.learner.activations import prepare

    rank = make_rank()
    [[step]] = plan_batch(make_batch(), rank.recipe, 64, 1)
    expected = gradient(rank, step)
    prepare(rank.policy, keep_attention=True, offload=offload, small=0)
    for _ in range(3):
        assert torch.equal(gradient(rank, step), expected)


def test_the_same_step_twice_is_equal_to_the_bit(make_rank: Callable, make_batch: Callable) -> None:
    rank = make_rank(activation_offload=True)
    [[step]] = plan_batch(make_batch(), rank.recipe, 64, 1)
    assert torch.equal(gradient(rank, step), gradient(rank, step))


def test_a_step_reports_its_peak_and_its_share_of_the_cards_speed(make_rank: Callable, make_batch: Callable) -> None:
    rank = make_rank()
    [plan] = plan_batch(make_batch(), rank.recipe, 64, 1)
    answer = rank.train(plan)
    assert answer["memory_peak_bytes"][0] == torch.cuda.max_memory_allocated()
    assert answer["model_flops"][0] > 0
