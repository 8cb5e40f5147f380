"""A training step against a reference of its own: transformers in float64, one sequence at a time, the formula.

The trainer's side runs in float64 too, so that only mistakes are left: equal means to 1e-9 of the gradient's norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcoder_contracts.recipe import Recipe
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.learner.group import combine, plan_batch
from deepcoder_trainer.types import Batch, Group, Sample


class Reference:
    """GRPO+ in float64 straight from its definition; shares no code with the trainer."""

    def __init__(self, directory: Path, recipe: Recipe) -> None:
        from transformers import AutoModelForCausalLM

        self.recipe = recipe
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
        if sample.generation.finish == "length" and reward == 0:
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
    """Turns a rank into float64 throughout; norms, which transformers computes in float32, included."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    from deepcoder_trainer.learner.rank import _adamw

    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))

    for kind in (LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(kind, "forward", forward)

    def make(rank: Any) -> Any:
        rank.policy.double()
        rank._optimizer = _adamw(rank.policy, rank.recipe)
        return rank

    return make


def assert_same_gradients(policy: Any, expected: dict[str, Any], tolerance: float) -> None:
    norm = math.sqrt(sum(float((g**2).sum()) for g in expected.values()))
    assert norm > 1e-3
    for name, parameter in policy.named_parameters():
        assert float((parameter.grad.double() - expected[name]).norm()) <= tolerance * norm, name


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
    learner.accumulate(step, {}, old)
    reference.loss(batch.groups, old_reference).backward()
    return {n: p.grad for n, p in reference.model.named_parameters()}


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


def test_a_step_reports_what_it_trained(make_recipe: Callable, make_batch: Callable, make_learner: Callable) -> None:
    recipe = make_recipe()
    batch = make_batch(seed=4)
    [plan] = plan_batch(batch, recipe, 64, 1)
    metrics = combine([make_learner(recipe).rank.train(plan)])
    assert metrics["tokens_trained"] == sum(len(s.generation.output_ids) for s in batch.samples)
    assert metrics["grad_norm"] > 0
    assert metrics["skipped_optimizer_steps"] == 0
    assert all(math.isfinite(v) for v in metrics.values())


def test_a_batch_with_no_judged_sample_changes_nothing(
    make_recipe: Callable, make_batch: Callable, make_learner: Callable
) -> None:
    learner = make_learner(make_recipe()).rank
    before = {n: v.clone() for n, v in learner.weights()}
    [plan] = plan_batch(make_batch(quarantined=1.1), make_recipe(), 64, 1)
    learner.train(plan)
    assert all(torch.equal(before[n], v) for n, v in learner.weights())


def test_a_gradient_that_is_not_finite_skips_the_update(
    make_recipe: Callable, make_batch: Callable, make_learner: Callable
) -> None:
    learner = make_learner(make_recipe()).rank
    [plan] = plan_batch(make_batch(), make_recipe(), 64, 1)
    plan[0].micro_batches[0].advantages[0] = np.inf
    before = {n: v.clone() for n, v in learner.weights()}
    metrics = combine([learner.train(plan[:1])])
    assert metrics["skipped_optimizer_steps"] == 1
    assert all(torch.equal(before[n], v) for n, v in learner.weights())


def test_the_same_training_twice_is_equal_to_the_bit(
    make_recipe: Callable, make_batch: Callable, make_learner: Callable
) -> None:
    results = []
    for _ in range(2):
        learner = make_learner(make_recipe(deterministic=True)).rank
        for seed in range(2):
            learner.train(plan_batch(make_batch(seed), learner.recipe, 64, 1)[0])
        results.append({n: v.clone() for n, v in learner.weights()})
    torch.use_deterministic_algorithms(False)
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(
    make_recipe: Callable, make_batch: Callable, make_learner: Callable
) -> None:
    batch = make_batch()
    exact = make_learner(make_recipe(optimizer_steps=1)).rank
    learner = make_learner(make_recipe(precision="BFloat16", optimizer_steps=1)).rank
    [[step]] = plan_batch(batch, learner.recipe, 64, 1)
    gap = np.abs(learner.logprobs(step.micro_batches[0]) - exact.logprobs(step.micro_batches[0]))
    assert 1e-4 < gap.max() < 0.5
    learner.train([step])
    assert all(p.dtype is torch.float32 for p in learner.policy.parameters())
    assert all(v.dtype is torch.bfloat16 for _, v in learner.weights())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"architectures": ["Qwen2MoeForCausalLM"]}, "mixture of experts"),
        ({"architectures": ["GPT2LMHeadModel"]}, "not supported"),
        ({"num_experts": 8}, "mixture of experts"),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8}, "use_sliding_window"),
    ],
)
def test_what_is_not_trained_here_is_refused_by_name(
    overrides: dict[str, Any], message: str, tiny_model: Callable, tmp_path: Path, make_learner: Callable
) -> None:
    import json
    import shutil

    directory = tmp_path / "model"
    shutil.copytree(tiny_model(), directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | overrides))
    with pytest.raises(BadConfig, match=message) as e:
        make_learner(model=directory)
    assert e.value.field == "model.uri"


def test_a_lora_adapter_is_refused_by_name(tmp_path: Path, make_learner: Callable) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BadConfig, match="LoRA"):
        make_learner(model=tmp_path)


def test_weights_that_do_not_fit_the_config_are_refused(
    tiny_model: Callable, tmp_path: Path, make_learner: Callable
) -> None:
    import shutil

    shutil.copytree(tiny_model(), tmp_path / "m")
    shutil.copy(tiny_model(num_hidden_layers=3) / "model.safetensors", tmp_path / "m" / "model.safetensors")
    with pytest.raises(BadConfig, match=r"unknown weights: model\.layers\.2"):
        make_learner(model=tmp_path / "m")
