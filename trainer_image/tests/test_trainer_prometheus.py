"""What is served for Prometheus is what docs/metrics.md promises, each metric of it, from a loop that runs."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attempt_world import World as AttemptWorld
from controller_world import EVALUATE, ScriptedLearner, World, stage_config
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from deepcoder_contracts.exit import ExitCode
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.evaluation.results import CodeforcesRating, MeanRating, dataset_result
from deepcoder_trainer.evaluation.results import metrics as evaluation_metrics
from deepcoder_trainer.grpo.summary import combine
from deepcoder_trainer.pipeline.probe import summary
from deepcoder_trainer.protocols import StepReport
from deepcoder_trainer.rollout.metrics import batch_metrics, verdict_counts
from deepcoder_trainer.telemetry import prometheus
from deepcoder_trainer.telemetry.observers import Observers
from deepcoder_trainer.telemetry.prometheus import PREFIX, Prometheus
from deepcoder_trainer.types import Batch

PAGE = Path(__file__).resolve().parents[2] / "docs/metrics.md"
ROW = re.compile(r"^\| (?P<names>`[^|]+`) \| (?P<type>\w+) \| (?P<labels>[^|]*)\|", re.MULTILINE)


def promised() -> dict[str, tuple[str, frozenset[str]]]:
    """Metric to its type and labels, as the page has them."""
    rows = {}
    for row in ROW.finditer(PAGE.read_text()):
        labels = frozenset(label.strip() for label in row["labels"].split(",") if label.strip())
        for name in re.findall(r"`(\w+)`", row["names"]):
            rows[name] = (row["type"], labels)
    return rows


def served(sink: Prometheus) -> dict[str, tuple[str, frozenset[str]]]:
    """The same of what is served, metrics without a value left out."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(sink.registry).decode()):
        if family.name.endswith("_created") or not family.samples:
            continue
        name = family.name.removeprefix(PREFIX) + ("_total" if family.type == "counter" else "")
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        found[name] = (family.type, labels)
    return found


def value(sink: Prometheus, name: str, **labels: str) -> float | None:
    return sink.registry.get_sample_value(PREFIX + name, labels)


@pytest.fixture
def learner_metrics(make_learner: Callable, make_recipe: Callable, make_batch: Callable) -> Mapping[str, float]:
    """What a real rank reports of a step; the peak speed is that of a card, which a CPU's is not known to be."""
    from deepcoder_trainer.learner.group import plan_batch

    recipe = make_recipe(old_logprobs="Recompute", kl_coefficient=0.1)
    [plan] = plan_batch(make_batch(seed=4), recipe, 64, 1)
    sums = make_learner(recipe).rank.train(plan)
    return combine([{**sums, "peak_flops": [1e12]}])


async def test_every_metric_of_the_page_is_served_and_nothing_that_it_does_not_have(
    learner_metrics: Mapping[str, float],
) -> None:
    class Learner(ScriptedLearner):
        async def train(self, batch: Batch) -> Mapping[str, float]:
            return {**await super().train(batch), **learner_metrics, "pack_seconds": 0.01}

    config = stage_config(4, recipe={"refill": True}, evaluate=EVALUATE)
    world, sink = World(config), Prometheus(config)
    world.learner = Learner()
    world.checkpoints.learner = world.learner
    notes = world.notes
    world.notes = Observers([notes, sink])  # type: ignore[assignment]
    health = {
        "sampler_restarts": 0.0,
        "judge_errors": 0.0,
        "judge_capacity": 8.0,
        "checkpoint_stall_seconds": 0.1,
        "checkpoint_upload_seconds": 1.0,
    }
    sink.watch(lambda: {"samples_lost": 0, "weight_sync_failures": 1, "sandbox_retries{reason=failed}": 2})
    await world.run()
    sink.curating("verify", 3, 10)
    probed = {"sync_samplers_probed": 1.0, **summary([1e-6], config.recipe)}
    sink.on_step(replace(notes.steps[-1], metrics=health, gauges=probed, groups=(), dropped=()))
    sink.committed(SimpleNamespace(step=4, created_at=datetime(2026, 1, 2, tzinfo=UTC)))  # type: ignore[arg-type]
    estimate = MeanRating(mean=1500, low=1400, high=1600)
    rated = dataset_result(
        [{"group_id": 0, "index": 0, "problem_id": "p", "reward": 1.0, "verdict": "passed", "finish": "stop",
          "response_tokens": 5}],
        CodeforcesRating(rating=estimate, percentile=50.0, by_contest={"1": 1500}),
    )  # fmt: skip
    sink.evaluated(evaluation_metrics({"short": {"held": rated}}))
    found = served(sink)
    missing = {name: what for name, what in promised().items() if found.get(name) != what}
    assert missing == {}, {name: found.get(name) for name in missing}
    assert set(found) - set(promised()) == set(), "tell of it in docs/metrics.md"


def report(make_batch: Callable[..., Batch], **changes: Any) -> StepReport:
    batch = make_batch(seed=1, groups=4, size=4)
    metrics = {**batch_metrics(batch.groups, 3), "tokens_trained": 40.0}
    whole = StepReport(2, 12, metrics, verdict_counts(batch.samples), {"train": 1.5, "sync": 0.25}, batch.groups)
    return replace(whole, **changes)


def test_each_sample_is_counted_once_and_a_second_report_counts_none(
    make_batch: Callable[..., Batch], make_config: Callable[..., StageConfig]
) -> None:
    sink = Prometheus(make_config())
    sink.on_phase(TrainerPhase.TRAINING)
    told = report(make_batch)
    sink.on_step(told)
    sink.on_step(replace(told, groups=(), dropped=(), phase_seconds={}))
    samples = [s for m in sink.registry.collect() for s in m.samples if s.name == f"{PREFIX}samples_total"]
    assert sum(s.value for s in samples) == 16
    assert value(sink, "step") == 2
    assert value(sink, "phase", phase="Training") == 1
    assert value(sink, "response_tokens_count") == 16
    assert value(sink, "tokens_trained_total") == 40
    assert value(sink, "phase_seconds_sum", phase="train") == 1.5
    assert value(sink, "weight_sync_seconds_sum") == 0.25


def test_what_was_sampled_and_dropped_is_counted_by_its_reason_and_among_the_samples(
    make_batch: Callable[..., Batch], make_config: Callable[..., StageConfig]
) -> None:
    sink = Prometheus(make_config())
    assert value(sink, "groups_dropped_total", reason="zero_variance") == 0, "0, not absent"
    sink.on_step(report(make_batch, dropped=make_batch(seed=2, groups=3, size=4).groups))
    assert value(sink, "groups_dropped_total", reason="zero_variance") == 3
    assert value(sink, "response_tokens_count") == 16 + 12
    assert value(sink, "staleness_steps_count") == 4, "what is not trained has none"


def test_an_evaluation_is_shown_with_its_length_and_stays_until_the_next(
    make_batch: Callable[..., Batch], make_config: Callable[..., StageConfig]
) -> None:
    config = make_config()
    evaluate = config.stage.model_copy(update={"context_tokens": 64})
    sink = Prometheus(config.model_copy(update={"stage": evaluate}))
    sink.on_step(report(make_batch, metrics={"eval/held/pass_at_1": 0.25, "reward_mean": 0.5}))
    sink.on_step(report(make_batch, metrics={"reward_mean": 0.75}))
    assert value(sink, "eval_pass_at_1", set="held", max_tokens="64", target="short") == 0.25
    sink.evaluated({"eval/held/Base/pass_at_1": 0.125})
    assert value(sink, "eval_pass_at_1", set="held", max_tokens="64", target="Base") == 0.125


def test_the_tails_of_the_gap_between_learner_and_sampler_add_up_over_steps(
    make_batch: Callable[..., Batch], make_config: Callable[..., StageConfig], learner_metrics: Mapping[str, float]
) -> None:
    sink = Prometheus(make_config())
    gaps = {name: 0.0 for name in learner_metrics if name.startswith("logprob_gap_above/")}
    assert gaps, "a learner tells them"
    quiet = {**gaps, "logprob_gap_abs_mean": 1e-7, "tokens_trained": 60.0}
    loud = {**quiet, **dict.fromkeys(gaps, 0.5), "logprob_gap_above/10": 0.0, "logprob_gap_abs_mean": 2.0}
    diverged = {**gaps, "logprob_gap_abs_mean": float("nan"), "tokens_trained": 0.0}
    for metrics in (quiet, diverged, loud):
        sink.on_step(report(make_batch, metrics=metrics))
    assert value(sink, "logprob_gap_abs_bucket", le="1e-06") == 60 + 30
    assert value(sink, "logprob_gap_abs_bucket", le="10") == 120
    assert value(sink, "logprob_gap_abs_bucket", le="+Inf") == value(sink, "logprob_gap_abs_count") == 120
    assert value(sink, "logprob_gap_abs_sum") == pytest.approx(60 * 1e-7 + 60 * 2)


def test_a_scrape_port_that_is_taken_does_not_stop_training(
    make_config: Callable[..., StageConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        monkeypatch.setenv("DEEPCODER_METRICS_PORT", str(taken.getsockname()[1]))
        Prometheus(make_config()).serve()
    assert "DEEPCODER_METRICS_PORT" in caplog.text


async def test_the_next_stage_of_a_process_finds_the_scrape_port_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = []

    def start(port: int, registry: CollectorRegistry) -> Any:
        started = start_http_server(port, addr="127.0.0.1", registry=registry)
        servers.append(started[0])
        return started

    monkeypatch.setattr(prometheus, "start_http_server", start)
    monkeypatch.setenv("DEEPCODER_METRICS_PORT", "0")
    record = await AttemptWorld(tmp_path, monkeypatch, steps=2, every=2).run()
    assert record.code == ExitCode.DONE
    [server] = servers
    assert server.socket.fileno() == -1, "it is closed"
