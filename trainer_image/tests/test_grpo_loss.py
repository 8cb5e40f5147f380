"""The loss against the formula, written down a second time in float64 and token by token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from lazy_modules import LazyModule

from deepcoder_contracts.recipe import Loss, Recipe
from deepcoder_trainer.grpo.summary import GAP_BINS, summarize

if TYPE_CHECKING:
    from deepcoder_trainer.grpo.loss import LossSettings

torch = LazyModule("torch")


def token_loss(
    lp: torch.Tensor, h: torch.Tensor, old: float, behaviour: float, a: float, reference: float, s: LossSettings
) -> Any:
    """One token's loss, from the formula."""
    clamp = lambda x: torch.clamp(x, -10, 10)  # noqa: E731
    rho = torch.exp(clamp(lp - old))
    low, high = 1 - s.clip_low, 1 + s.clip_high
    if s.importance and not s.recompute and float(rho.detach()) > s.tis_cap:
        rho = rho * (s.tis_cap / float(rho.detach()))
    if s.kind is Loss.CLIP:
        bound = low if float(rho.detach()) < low else high
        clipped = rho if low <= float(rho.detach()) <= high else torch.tensor(bound, dtype=torch.float64)
        term = max(-a * rho, -a * clipped, key=lambda x: float(x.detach()))
    else:
        term = -min(max(float(rho.detach()), low), high) * a * lp
    if s.importance and s.recompute:
        term = term * min(math.exp(max(-10.0, min(10.0, old - behaviour))), s.tis_cap)
    d = clamp(reference - lp)
    return term - s.entropy_coefficient * h + s.kl_coefficient * (torch.exp(d) - 1 - d)


def random_tokens(seed: int, n: int = 200) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    behaviour = -rng.gamma(2, 1, n)
    old = behaviour + rng.normal(0, 0.4, n)
    logprob = old + rng.normal(0, 0.4, n)
    logprob[:3] += 30  # far outside: the clamp at 10 must hold on both sides
    logprob[3:6] -= 30
    reference = logprob + rng.normal(0, 0.6, n)
    reference[6:8] += 30
    return {
        "logprob": torch.tensor(logprob),
        "entropy": torch.tensor(rng.gamma(2, 1, n)),
        "old_logprob": torch.tensor(old),
        "behaviour": torch.tensor(behaviour),
        "advantages": torch.tensor(rng.normal(0, 1, n)),
        "mask": torch.tensor(rng.random(n) < 0.9),
        "reference": torch.tensor(reference),
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "clip": {},
    "cispo": {"kind": Loss.CISPO},
    "clip with TIS": {"recompute": True, "tis_cap": 2.0},
    "cispo with TIS": {"kind": Loss.CISPO, "recompute": True, "tis_cap": 1.3},
    "clip against the sampler, capped": {"tis_cap": 2.0},
    "clip against the sampler, cap within the clip range": {"tis_cap": 1.1},
    "cispo against the sampler, cap within the clip range": {"kind": Loss.CISPO, "tis_cap": 1.1},
    "entropy bonus": {"entropy_coefficient": 0.01},
    "divergence": {"kl_coefficient": 0.05},
    "divergence and entropy, recomputed": {"kl_coefficient": 0.5, "entropy_coefficient": 0.01, "recompute": True},
    "as published": {"recompute": True, "importance": False, "tis_cap": 2.0},
    "against the sampler, not weighted": {"importance": False, "tis_cap": 1.1},
    "symmetric clip": {"clip_low": 0.2, "clip_high": 0.2},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradients_are_those_of_the_formula(settings: dict[str, Any], seed: int) -> None:
    from deepcoder_trainer.grpo.loss import LossSettings, policy_loss

    chosen, t = LossSettings(**settings), random_tokens(seed)
    logprob, entropy = t["logprob"].clone().requires_grad_(), t["entropy"].clone().requires_grad_()
    rest = (t[name] for name in ("old_logprob", "behaviour", "advantages", "mask"))
    loss, _ = policy_loss(logprob, entropy, *rest, chosen, t["reference"])
    loss.backward()
    expected = torch.zeros((), dtype=torch.float64)
    lp, h = t["logprob"].clone().requires_grad_(), t["entropy"].clone().requires_grad_()
    for i in range(len(lp)):
        if t["mask"][i]:
            rest = (float(t[k][i]) for k in ("old_logprob", "behaviour", "advantages", "reference"))
            expected = expected + token_loss(lp[i], h[i], *rest, chosen)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logprob.grad, lp.grad, rtol=1e-10, atol=1e-12)
    if chosen.entropy_coefficient:
        torch.testing.assert_close(entropy.grad, h.grad, rtol=1e-10, atol=1e-12)


def test_a_token_beyond_the_clip_gets_no_gradient_under_clip_and_keeps_one_under_cispo() -> None:
    from deepcoder_trainer.grpo.loss import LossSettings, policy_loss

    one = lambda x: torch.tensor([x], dtype=torch.float64)  # noqa: E731
    grads = {}
    for kind in Loss:
        logprob = one(-1.0).requires_grad_()
        loss, _ = policy_loss(
            logprob, one(0.0), one(-2.0), one(-2.0), one(1.0), torch.tensor([True]), LossSettings(kind=kind)
        )
        loss.backward()
        grads[kind] = float(logprob.grad)
    assert grads[Loss.CLIP] == 0
    assert grads[Loss.CISPO] == pytest.approx(-1.28)


@pytest.mark.parametrize(("cap", "gradient"), [(math.inf, math.exp(5)), (2.0, 2.0)])
def test_a_stale_token_of_negative_advantage_pushes_no_harder_than_the_cap(cap: float, gradient: float) -> None:
    from deepcoder_trainer.grpo.loss import LossSettings, policy_loss

    one = lambda x: torch.tensor([x], dtype=torch.float64)  # noqa: E731
    logprob = one(-1.0).requires_grad_()
    settings = LossSettings(tis_cap=cap)
    policy_loss(logprob, one(0.0), one(-6.0), one(-6.0), one(-1.0), torch.tensor([True]), settings)[0].backward()
    assert float(logprob.grad) == pytest.approx(gradient)


@pytest.mark.parametrize(("cap", "gradient"), [(2.0, 0.0), (1.2, -1.2)])
def test_a_cap_below_the_upper_clip_keeps_every_token_from_that_clip(cap: float, gradient: float) -> None:
    from deepcoder_trainer.grpo.loss import LossSettings, policy_loss

    one = lambda x: torch.tensor([x], dtype=torch.float64)  # noqa: E731
    logprob = one(-1.0).requires_grad_()
    settings = LossSettings(tis_cap=cap)
    policy_loss(logprob, one(0.0), one(-2.0), one(-2.0), one(1.0), torch.tensor([True]), settings)[0].backward()
    assert float(logprob.grad) == pytest.approx(gradient)


def test_the_published_synchronous_recipe_is_untouched_by_the_cap_where_sampler_and_learner_agree() -> None:
    from deepcoder_trainer.grpo.loss import LossSettings, policy_loss

    t = random_tokens(0)
    t["behaviour"] = t["old_logprob"]
    losses = [
        policy_loss(*(t[k] for k in ("logprob", "entropy", "old_logprob", "behaviour", "advantages", "mask")), s)[0]
        for s in (LossSettings(), LossSettings.of(Recipe(max_off_policy=0)))
    ]
    assert float(losses[0]) == float(losses[1])


def test_the_cap_is_of_the_recompute_or_of_the_ratio_itself() -> None:
    from deepcoder_trainer.grpo.loss import LossSettings

    for recipe, recompute in (
        (Recipe(old_logprobs="Recompute"), True),
        (Recipe(old_logprobs="Behaviour"), False),
        (Recipe(max_off_policy=0), True),
        (Recipe(max_off_policy=1), False),
    ):
        settings = LossSettings.of(recipe)
        assert (settings.recompute, settings.tis_cap) == (recompute, 2.0)


def test_the_weight_can_be_left_out_as_published() -> None:
    from deepcoder_trainer.grpo.loss import LossSettings, policy_loss

    t = random_tokens(1)
    inputs = [t[k] for k in ("logprob", "entropy", "old_logprob", "behaviour", "advantages", "mask")]
    recipe = Recipe(max_off_policy=0, importance="Off")
    loss, sums = policy_loss(*inputs, LossSettings.of(recipe))
    ratio = (t["logprob"] - t["old_logprob"]).clamp(-10, 10).exp()
    published = torch.maximum(-t["advantages"] * ratio, -t["advantages"] * ratio.clamp(0.8, 1.28))
    assert float(loss) == pytest.approx(float(published[t["mask"]].sum()), rel=1e-12)
    assert "importance" not in sums


def test_the_divergence_is_reported_and_is_zero_from_itself() -> None:
    from deepcoder_trainer.grpo.loss import LossSettings, policy_loss

    t = random_tokens(2)
    inputs = [t[k] for k in ("logprob", "entropy", "old_logprob", "behaviour", "advantages", "mask")]
    for reference, expected in ((t["logprob"], 0.0), (t["logprob"] + 0.5, math.exp(0.5) - 1.5)):
        _, sums = policy_loss(*inputs, LossSettings(kl_coefficient=0.1), reference)
        metrics = summarize({k: v.reshape(-1).tolist() for k, v in sums.items()})
        assert metrics["reference_kl"] == pytest.approx(expected)
    assert "reference_kl" not in policy_loss(*inputs, LossSettings())[1]


def test_metrics_count_each_side_of_the_clip() -> None:
    from deepcoder_trainer.grpo.loss import LossSettings, policy_loss

    ratio = torch.tensor([0.5, 0.5, 1.0, 2.0, 2.0, 2.0], dtype=torch.float64)
    zero = torch.zeros(6, dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    mask = torch.tensor([True] * 5 + [False])
    _, sums = policy_loss(ratio.log(), zero + 0.7, zero, zero, advantages, mask, LossSettings())
    metrics = summarize({k: v.reshape(-1).tolist() for k, v in sums.items()})
    assert metrics["tokens_trained"] == 5
    assert metrics["ratio_below_clip_ratio"] == pytest.approx(2 / 5)
    assert metrics["ratio_above_clip_ratio"] == pytest.approx(2 / 5)
    assert metrics["clipped_low_ratio"] == pytest.approx(1 / 5)
    assert metrics["clipped_high_ratio"] == pytest.approx(1 / 5)
    assert metrics["entropy"] == pytest.approx(0.7)
    gaps = [math.log(2)] * 4 + [0.0]
    assert metrics["logprob_gap_abs_mean"] == pytest.approx(sum(gaps) / 5)
    assert math.log(2) <= metrics["logprob_gap_abs_p95"] <= math.log(2) * 10 ** (1 / 8)
    kl = [(math.exp(d) - 1 - d) for d in (-math.log(2), -math.log(2), 0, math.log(2), math.log(2))]
    assert metrics["mismatch_kl"] == pytest.approx(sum(kl) / 5)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_mismatch_with_the_sampler_is_that_of_the_recomputed_log_probabilities_if_there_are_some(
    recompute: bool,
) -> None:
    from deepcoder_trainer.grpo.loss import LossSettings, policy_loss

    one = lambda x: torch.tensor([x], dtype=torch.float64)  # noqa: E731
    logprob, recomputed, behaviour = one(-1.0), one(-1.5), one(-2.0)
    old = recomputed if recompute else behaviour
    _, sums = policy_loss(
        logprob, one(0.0), old, behaviour, one(1.0), torch.tensor([True]), LossSettings(recompute=recompute)
    )
    assert float(sums["logprob_gap"]) == pytest.approx(0.5 if recompute else 1.0)


@pytest.mark.parametrize("diverged", [math.nan, math.inf])
def test_a_token_without_a_number_counts_as_far_off_as_can_be(diverged: float) -> None:
    """A step that diverged would look like perfect agreement of learner and sampler."""
    from deepcoder_trainer.grpo.loss import LossSettings, policy_loss

    row = lambda *x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    behaviour, advantages = row(-1.0, -1.0, -1.0), row(1.0, 1.0, 1.0)
    logprob = row(-1.0, diverged, diverged)
    _, sums = policy_loss(
        logprob, row(0, 0, 0), behaviour, behaviour, advantages, torch.tensor([True, True, True]), LossSettings()
    )
    metrics = summarize({k: v.reshape(-1).tolist() for k, v in sums.items()})
    assert metrics["logprob_gap_above/10"] == pytest.approx(2 / 3)
    assert metrics["logprob_gap_abs_p95"] == 100


def test_metrics_of_no_token_at_all_are_finite() -> None:
    from deepcoder_trainer.grpo.loss import LossSettings, policy_loss

    none = torch.zeros(0, dtype=torch.float64)
    loss, sums = policy_loss(none, none, none, none, none, none.bool(), LossSettings())
    assert float(loss) == 0
    assert len(sums["gap_histogram"]) == GAP_BINS
    assert all(math.isfinite(v) for v in summarize({k: v.reshape(-1).tolist() for k, v in sums.items()}).values())
