"""GRPO+ in float64 straight from its definition, for tests to hold the trainer to; shares no code with it.

transformers computes the model, one sequence at a time. The trainer's side is turned into float64 too, so that only
mistakes are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lazy_modules import LazyModule

from deepcoder_contracts.recipe import Recipe
from deepcoder_trainer.learner.group import plan_batch
from deepcoder_trainer.types import Batch, Group, Sample

torch = LazyModule("torch")


class Reference:
    """The model, its loss and its optimizer."""

    def __init__(self, directory: Path, recipe: Recipe) -> None:
        from transformers import AutoModelForCausalLM

        self.recipe = recipe
        self.start: Reference | None = None
        """The starting model, for a divergence from it."""
        # Not "eager", whose softmax is in float32.
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="sdpa")
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=recipe.learning_rate,
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            weight_decay=recipe.weight_decay,
            foreach=False,
            fused=False,
        )

    def logprobs(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
        output = torch.from_numpy(sample.generation.output_ids.astype(np.int64))
        ids = torch.cat([torch.from_numpy(sample.prompt_ids.astype(np.int64)), output])
        logits = self.model(ids[None]).logits[0, len(sample.prompt_ids) - 1 : -1] / self.recipe.temperature
        p = logits.softmax(-1)
        return p.log().gather(-1, output[:, None])[:, 0], -(p * p.log()).sum(-1)

    def advantage(self, group: Group, sample: Sample) -> float | None:
        rewards = [s.outcome.reward for s in group.samples if s.outcome.reward is not None]
        reward = sample.outcome.reward
        if reward is None:
            return None
        if sample.generation.finish == "length" and reward <= 0:
            rule = self.recipe.overlong.value
            if rule != "Off":
                return 0.0 if rule == "ZeroAdvantage" else None
        mean = sum(rewards) / len(rewards)
        if self.recipe.advantage.value == "MeanOnly":
            return reward - mean
        if len(rewards) < 2:
            return 0.0
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
        return (reward - mean) / (std + 1e-6)

    def loss(self, groups: Sequence[Group], old: dict[tuple[int, int], torch.Tensor] | None) -> torch.Tensor:
        r = self.recipe
        total, tokens = torch.zeros((), dtype=torch.float64), 0
        for group in groups:
            for sample in group.samples:
                a = self.advantage(group, sample)
                if a is None:
                    continue
                a = float(np.float32(a))  # as it travels to the ranks
                lp, entropy = self.logprobs(sample)
                behaviour = torch.from_numpy(sample.generation.logprobs).double()
                reference = behaviour if old is None else old[sample.group_id, sample.index]
                rho = (lp - reference).clamp(-10, 10).exp()
                weighted = r.importance.value == "Truncated"
                if old is None and weighted:
                    rho = torch.where(rho > r.tis_cap, r.tis_cap * rho / rho.detach(), rho)
                clipped = rho.clamp(1 - r.clip_low, 1 + r.clip_high)
                term = torch.maximum(-a * rho, -a * clipped) if r.loss.value == "Clip" else -a * clipped.detach() * lp
                if old is not None and weighted:
                    term = term * (reference - behaviour).clamp(-10, 10).exp().clamp(max=r.tis_cap)
                if self.start is not None:
                    with torch.no_grad():
                        d = (self.start.logprobs(sample)[0] - lp.detach()).clamp(-10, 10)
                    # The gradient of e^d - 1 - d, with d = start - lp.
                    term = term + r.kl_coefficient * (1 - d.exp()) * lp
                keep = torch.isfinite(behaviour)
                total = total + (term - r.entropy_coefficient * entropy)[keep].sum()
                tokens += int(keep.sum())
        return total / tokens

    def train(self, batch: Batch) -> None:
        half = len(batch.groups) // 2
        recompute = self.recipe.resolved_old_logprobs.value == "Recompute"
        with torch.no_grad():
            old = {(s.group_id, s.index): self.logprobs(s)[0] for s in batch.samples} if recompute else None
        for groups in (batch.groups[:half], batch.groups[half:]):
            self.optimizer.zero_grad()
            self.loss(groups, old).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip)
            self.optimizer.step()


def near_policy(directory: Path, recipe: Recipe, seed: int = 0) -> Callable[[Sample], np.ndarray]:
    """Behaviour log-probabilities near the model's own: some inside the clip range, some outside, one not finite."""
    rng = np.random.default_rng(seed)
    reference = Reference(directory, recipe)

    def behaviour(sample: Sample) -> np.ndarray:
        with torch.no_grad():
            own = reference.logprobs(sample)[0].numpy()
        noisy = own + rng.normal(0, 0.2, len(own))
        return np.where(rng.random(len(own)) < 0.03, -np.inf, noisy)

    return behaviour


def exact_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Makes a function that turns a rank into float64, norms included, which transformers computes in float32."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    from deepcoder_trainer.learner.optimizer import adamw

    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))

    for kind in (LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(kind, "forward", forward)

    def make(rank: Any) -> Any:
        rank.policy.double()
        if rank._reference is not None:
            rank._reference.double()
        rank._optimizer = adamw(rank.policy, rank.recipe)
        return rank

    return make


def assert_same_gradients(policy: Any, expected: dict[str, Any], tolerance: float) -> None:
    norm = math.sqrt(sum(float((g**2).sum()) for g in expected.values()))
    assert norm > 1e-3
    for name, parameter in policy.named_parameters():
        assert float((parameter.grad.double() - expected[name]).norm()) <= tolerance * norm, name


def both_gradients(
    learner: Any, reference: Reference, batch: Batch, recipe: Recipe, capacity: int = 64
) -> dict[str, Any]:
    """Accumulates the learner's gradient of one optimizer step; returns the reference's."""
    [[step]] = plan_batch(batch, recipe, capacity, 1)
    old, old_reference = None, None
    if recipe.resolved_old_logprobs.value == "Recompute":
        old = [torch.from_numpy(learner.logprobs(m)) for m in step.micro_batches]
        with torch.no_grad():
            old_reference = {(s.group_id, s.index): reference.logprobs(s)[0] for s in batch.samples}
    start = learner._reference_logprobs([step])
    learner.accumulate(step, {}, old, start and start[0])
    reference.loss(batch.groups, old_reference).backward()
    return {n: p.grad for n, p in reference.model.named_parameters()}
