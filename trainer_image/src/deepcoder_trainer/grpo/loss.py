"""The GRPO+ policy loss over flat arrays of response tokens, and its metrics.

With rho = exp(logp - old_logp), the loss per token is

    Clip:   max(-A rho, -A clip(rho, 1 - low, 1 + high))           PPO's surrogate with separate bounds (clip-higher)
    Cispo:  -A stopgrad(clip(rho, 1 - low, 1 + high)) logp         every token keeps its gradient (MiniMax-M1)

minus `entropy_coefficient` times the entropy, plus `kl_coefficient` times exp(d) - 1 - d with d = reference - logp,
which is a non-negative estimate of KL(policy || reference) (k3 of Schulman, "Approximating KL Divergence").

Truncated importance sampling corrects for the sampler's distribution (`behaviour`), with weights capped at `tis_cap`.
It takes one of two forms, each a constant factor min(…) without gradient. With `importance` off there is none:

    old_logp is recomputed by the learner   the term is multiplied by min(exp(old_logp - behaviour), cap)
    old_logp is `behaviour` itself          rho is the importance weight: rho * min(1, cap / rho) replaces it above

Without the second form, a token of negative advantage would be unbounded: clipping leaves max(-A rho, …) growing with
rho up to e^10, and one stale token would move the model as much as thousands of others. (Dual-clip PPO, Ye et al. 2020,
also bounds it, but with zero gradient beyond the bound; a truncated weight keeps a gradient of the cap's size.)
The loss is a sum: the caller divides it by the token count of the whole optimizer step. |log ratio| is clamped at 10
before any exponential.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from deepcoder_contracts.recipe import Importance, Loss, OldLogprobs, Recipe
from deepcoder_trainer.grpo.summary import GAP_BINS, GAP_BINS_PER_DECADE, GAP_DECADES

MAX_LOG_RATIO = 10.0
"""Log ratios are clamped to ± this: exp(10) = 22,026 is far outside any clip range and still finite in float32."""


@dataclass(frozen=True)
class LossSettings:
    """The recipe's settings of the loss."""

    kind: Loss = Loss.CLIP
    clip_low: float = 0.2
    clip_high: float = 0.28
    entropy_coefficient: float = 0.0
    recompute: bool = False
    """Whether old_logp is recomputed by the learner; otherwise it is the sampler's log-probability."""
    importance: bool = True
    """Whether the truncated importance weight is applied."""
    tis_cap: float = math.inf
    """Cap of the importance weight."""
    kl_coefficient: float = 0.0
    """Weight of the KL divergence from the reference model."""

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Return the settings of a recipe."""
        return cls(
            kind=recipe.loss,
            clip_low=recipe.clip_low,
            clip_high=recipe.clip_high,
            entropy_coefficient=recipe.entropy_coefficient,
            recompute=recipe.resolved_old_logprobs is OldLogprobs.RECOMPUTE,
            importance=recipe.importance is Importance.TRUNCATED,
            tis_cap=recipe.tis_cap,
            kl_coefficient=recipe.kl_coefficient,
        )


def policy_loss(
    logprob: Tensor,
    entropy: Tensor,
    old_logprob: Tensor,
    behaviour: Tensor,
    advantages: Tensor,
    mask: Tensor,
    settings: LossSettings,
    reference: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss summed over the tokens in `mask`, and sums for the metrics (see `summary.summarize`).

    All tensors are [R], one entry per response token. `logprob` and `entropy` are the current policy's, with gradient;
    `behaviour` holds the sampler's log-probabilities, and `reference` the reference model's, which a positive
    `kl_coefficient` requires.
    """
    weight = mask.to(logprob.dtype)
    log_ratio = (logprob - old_logprob).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    rho, importance = ratio, None
    if settings.recompute and settings.importance:
        gap = (old_logprob - behaviour).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        importance = gap.exp().clamp(max=settings.tis_cap)
    elif settings.importance:
        rho = ratio * (settings.tis_cap / ratio.detach()).clamp(max=1.0)
    clipped = rho.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    if settings.kind is Loss.CLIP:
        surrogate = torch.maximum(-advantages * rho, -advantages * clipped)
    else:
        surrogate = -advantages * clipped.detach() * logprob
    if importance is not None:
        surrogate = surrogate * importance
    loss = (surrogate * weight).sum()
    if settings.entropy_coefficient:
        loss = loss - settings.entropy_coefficient * (entropy * weight).sum()
    divergence = None
    if settings.kl_coefficient:
        assert reference is not None, "a KL coefficient without a reference"
        difference = (reference - logprob).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        divergence = ((difference.exp() - 1 - difference) * weight).sum()
        loss = loss + settings.kl_coefficient * divergence
    with torch.no_grad():
        sums = _sums(ratio, entropy, old_logprob if settings.recompute else logprob, behaviour, advantages, weight)
        low, high = ratio < 1 - settings.clip_low, ratio > 1 + settings.clip_high
        sums |= {
            "loss": loss.detach(),
            "ratio_below_clip": (low * weight).sum(),
            "ratio_above_clip": (high * weight).sum(),
            "clipped_low": ((low & (advantages < 0)) * weight).sum(),
            "clipped_high": ((high & (advantages > 0)) * weight).sum(),
        }
        if importance is not None:
            sums["importance"] = (importance * weight).sum()
        if divergence is not None:
            sums["reference_kl"] = divergence.detach()
    return loss, sums


def _sums(
    ratio: Tensor, entropy: Tensor, learner: Tensor, behaviour: Tensor, advantages: Tensor, weight: Tensor
) -> dict[str, Tensor]:
    difference = (learner - behaviour).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    first = GAP_DECADES[0]
    # No number has no place of its own, and is as far off as can be: a step that diverged must not look exact.
    gap = (learner - behaviour).abs().nan_to_num(nan=10.0 ** GAP_DECADES[1])
    exponent = gap.clamp(min=10.0**first).log10()
    place = ((exponent - first) * GAP_BINS_PER_DECADE).long().clamp(0, GAP_BINS - 1)
    histogram = torch.zeros(GAP_BINS, dtype=weight.dtype, device=weight.device).index_add_(0, place, weight)
    return {
        "tokens": weight.sum(),
        "ratio": (ratio * weight).sum(),
        "entropy": (entropy * weight).sum(),
        "advantage": (advantages * weight).sum(),
        # Schulman's k3, a non-negative estimator of KL(sampler || learner): E[exp(d) - 1 - d].
        "mismatch_kl": ((difference.exp() - 1 - difference) * weight).sum(),
        "logprob_gap": ((learner - behaviour).abs() * weight).sum(),
        "gap_histogram": histogram,
    }
