"""One learner rank: what a step reports, skips and repeats, what it sends, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lazy_modules import LazyModule

from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.grpo.summary import combine
from deepcoder_trainer.learner.group import plan_batch

torch = LazyModule("torch")


@pytest.fixture(autouse=True)
def nothing_stays_set() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def test_a_step_reports_what_it_trained(make_recipe: Callable, make_batch: Callable, make_learner: Callable) -> None:
    recipe = make_recipe()
    batch = make_batch(seed=4)
    [plan] = plan_batch(batch, recipe, 64, 1)
    metrics = combine([make_learner(recipe).rank.train(plan)])
    assert metrics["tokens_trained"] == sum(len(s.generation.output_ids) for s in batch.samples)
    assert metrics["grad_norm"] > 0
    assert metrics["skipped_optimizer_steps"] == 0
    assert metrics["update_seconds"] >= metrics["forward_backward_seconds"] > 0
    assert metrics["memory_peak_bytes"] > 1 << 20
    assert "mfu_ratio" not in metrics  # what a CPU could do at most is not known
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
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


@pytest.mark.parametrize(("variable", "threads"), [(None, 1), ("2", 2), ("3,1", 3), ("many", 1)])
def test_a_deterministic_rank_has_one_thread_unless_the_environment_says_otherwise(
    variable: str | None, threads: int, make_recipe: Callable, tiny_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepcoder_trainer.learner.rank import LearnerRank
    from deepcoder_trainer.learner.rank_settings import RankSettings

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    settings = RankSettings(str(tiny_model()), make_recipe(deterministic=True), 0, False, 2, 60)
    LearnerRank(settings, 0, 1)
    assert torch.get_num_threads() == threads


def test_weights_are_gathered_in_the_format_they_are_sent_in(
    make_recipe: Callable, make_learner: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.tensor import DTensor

    learner = make_learner(make_recipe(precision="BFloat16")).rank
    gathered: list[torch.dtype] = []
    whole = DTensor.full_tensor
    monkeypatch.setattr(DTensor, "full_tensor", lambda self: (gathered.append(self.dtype), whole(self))[1])
    sent = dict(learner.weights())
    assert set(gathered) == {torch.bfloat16}
    exact = dict(learner.weights(torch.float32))
    assert all(torch.equal(value, exact[name].bfloat16()) for name, value in sent.items())


def test_no_reference_is_loaded_where_nothing_is_measured_against_it(
    make_recipe: Callable, make_learner: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepcoder_trainer.learner import rank

    def refuse(*_: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(rank, "load_reference", refuse)
    make_learner(make_recipe())
    with pytest.raises(AssertionError, match="loaded"):
        make_learner(make_recipe(kl_coefficient=0.01))


def test_the_divergence_from_the_start_grows_from_zero_and_is_reported(
    make_recipe: Callable, make_batch: Callable, make_learner: Callable
) -> None:
    recipe = make_recipe(kl_coefficient=0.01, optimizer_steps=1, precision="BFloat16")
    learner = make_learner(recipe).rank
    seen = [combine([learner.train(plan_batch(make_batch(), recipe, 64, 1)[0])])["reference_kl"] for _ in range(3)]
    assert seen[0] == 0
    assert seen[2] > seen[1] > 0


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


def test_a_model_stored_in_bfloat16_is_trained_in_float32(
    make_recipe: Callable, make_batch: Callable, make_learner: Callable, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_model()).to(torch.bfloat16).save_pretrained(tmp_path)
    learner = make_learner(make_recipe(learning_rate=1e-6), model=tmp_path).rank
    before = {n: v.clone() for n, v in learner.weights()}
    [plan] = plan_batch(make_batch(), make_recipe(), 64, 1)
    learner.train(plan)
    assert {value.dtype for value in learner._state(optimizer=True).values()} == {torch.float32}
    moved = [n for n, v in learner.weights() if not torch.equal(before[n], v)]
    assert len(moved) > len(before) / 2, "steps of 1e-6 are less than bfloat16 can tell"


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
