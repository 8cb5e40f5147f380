"""Metrics for Prometheus, served while an attempt runs; docs/metrics.md lists them.

Metrics use base units and have no label for the run, which the scrape target has. Most are gauges of the last step,
under the name in the step's report. Counters and histograms cover this attempt. Totals of the other parts (`watch`) are
read at each scrape. Failures to serve metrics are logged and never stop training.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from deepcoder_contracts.manifest import Manifest
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.grpo.summary import GAP_ABOVE, GAP_EDGES
from deepcoder_trainer.protocols import StepReport
from deepcoder_trainer.types import Group

log = logging.getLogger(__name__)

PREFIX = "deepcoder_trainer_"
PORT_VARIABLE = "DEEPCODER_METRICS_PORT"
_LENGTH_BUCKETS = tuple(float(2**n) for n in range(4, 18))
_SECONDS_BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
_JUDGE_BUCKETS = (0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_COUNT_BUCKETS = (0, 1, 2, 3, 4, 8, 16)

_WITHIN_TRAIN = {f"{phase}_seconds": phase for phase in ("pack", "recompute", "forward_backward", "optimizer")}
"""Metrics with the seconds of a part of `train`, which are shown as separate phases."""
_LABELLED = {
    "ratio_below_clip_ratio": "ratio_outside_clip_ratio{side=below}",
    "ratio_above_clip_ratio": "ratio_outside_clip_ratio{side=above}",
    "checkpoint_stall_seconds": "checkpoint_seconds{part=stall}",
    "checkpoint_upload_seconds": "checkpoint_seconds{part=upload}",
}
"""Metrics that become one metric with a label here; metrics.jsonl and gates use their plain names."""
_COUNTED = {"tokens_sampled", "tokens_trained", "groups_dropped", "logprob_gap_abs", "version_spans"}
"""Names of counters and histograms. A gauge of the last step with the same name gets the prefix `last_`."""
_WITH_LABEL = re.compile(r"^(?P<name>\w+)\{(?P<label>\w+)=(?P<value>[^}]+)\}$")
_EVALUATED = re.compile(r"^eval/(?P<set>[^/]+)/(?:(?P<target>[^/]+)/)?(?P<figure>\w+)$")


class Prometheus:
    """Gauges of the last step, counters and histograms over the attempt."""

    def __init__(self, config: StageConfig) -> None:
        stage = config.stage
        self.registry = CollectorRegistry()
        self._stage = stage.name
        self._max_tokens = str((stage.evaluate.context_tokens if stage.evaluate else None) or stage.context_tokens)
        self._gauges: dict[str, Gauge] = {}
        self._set("stage_index", stage.index)
        self._phase = self._gauge("phase", "phase")
        self._samples = self._counter(
            "samples", "Judged samples, including those of dropped groups", "finish", "verdict"
        )
        self._sampled = self._counter("tokens_sampled", "Response tokens that were sampled")
        self._trained = self._counter("tokens_trained", "Response tokens that were trained on")
        self._dropped = self._counter("groups_dropped", "Groups that were sampled but not trained on", "reason")
        self._dropped.labels("zero_variance")
        self._length = self._histogram("response_tokens", "Response length", _LENGTH_BUCKETS)
        self._staleness = self._histogram(
            "staleness_steps", "Versions between a group's admission and its training", _COUNT_BUCKETS
        )
        self._spans = self._histogram("version_spans", "Versions that sampled one response", _COUNT_BUCKETS)
        self._seconds = self._histogram("phase_seconds", "Seconds of a step", _SECONDS_BUCKETS, "phase")
        self._sync = self._histogram("weight_sync_seconds", "Time until samplers have a step's weights")
        self._judging = self._histogram("sandbox_seconds", "Time to judge one sample", _JUDGE_BUCKETS, "verdict")
        self._gap = _GapHistogram()
        self._watched = _Watched()
        self._server: Any = None
        self.registry.register(self._gap)
        self.registry.register(self._watched)

    def serve(self) -> None:
        """Open the scrape port if one is configured; training continues if this fails."""
        port = os.environ.get(PORT_VARIABLE)
        if not port:
            return
        try:
            self._server, _ = start_http_server(int(port), registry=self.registry)
        except (OSError, ValueError) as error:
            log.error("no metrics are served, %s=%s: %s", PORT_VARIABLE, port, error)

    def close(self) -> None:
        """Close the scrape port, for the next stage of a local run. It may block for half a second."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def watch(self, totals: Callable[[], Mapping[str, float]]) -> None:
        """Read `totals` at each scrape: names, with a label as in `name{label=value}`, and counts that never decrease.

        It is called in the server's thread.
        """
        self._watched.totals = totals

    def on_phase(self, phase: TrainerPhase) -> None:
        """Set the gauge of the phase."""
        for each in TrainerPhase:
            self._phase.labels(each.value).set(each is phase)

    def curating(self, phase: str, done: int, total: int) -> None:
        """Show the progress of the run's curation."""
        gauge = self._gauge("curation_problems", "phase", "state")
        gauge.labels(phase, "done").set(done)
        gauge.labels(phase, "total").set(total)

    def on_step(self, report: StepReport) -> None:
        """Set the gauges, and count the step's samples."""
        self._set("step", report.step)
        self.evaluated(report.metrics)
        for name, value in {**report.metrics, **report.gauges}.items():
            if name in _WITHIN_TRAIN:
                self._seconds.labels(_WITHIN_TRAIN[name]).observe(value)
            elif not name.startswith(("eval/", GAP_ABOVE)):
                self._set(_LABELLED.get(name, name), value)
        for phase, seconds in report.phase_seconds.items():
            self._seconds.labels(phase).observe(seconds)
        if "sync" in report.phase_seconds:
            self._sync.observe(report.phase_seconds["sync"])
        self._count(report)

    def evaluated(self, figures: Mapping[str, float]) -> None:
        """Set the results of an evaluation: `eval/<set>/<figure>`, and `eval/<set>/<target>/pass_at_1`."""
        for name, value in figures.items():
            if (match := _EVALUATED.match(name)) is not None:
                gauge = self._gauge(f"eval_{match['figure']}", "set", "max_tokens", "target")
                gauge.labels(match["set"], self._max_tokens, match["target"] or self._stage).set(value)

    def committed(self, manifest: Manifest) -> None:
        """Set the gauges of the newest checkpoint: one that was committed, or the one that the attempt resumed from."""
        self._set("checkpoint_last_step", manifest.step)
        self._set("checkpoint_last_success_timestamp_seconds", manifest.created_at.timestamp())

    def _count(self, report: StepReport) -> None:
        """Add a step to counters and histograms. A second report on the same step has no groups."""
        self._dropped.labels("zero_variance").inc(len(report.dropped))
        for group in report.dropped:
            self._count_samples(group)
        if not report.groups:
            return
        self._trained.inc(report.metrics.get("tokens_trained", 0.0))
        self._gap.add(report.metrics)
        oldest = min(g.admitted_version for g in report.groups)
        trained_by = oldest + report.metrics.get("staleness_max", 0.0)
        for group in report.groups:
            self._staleness.observe(trained_by - group.admitted_version)
            self._count_samples(group)

    def _count_samples(self, group: Group) -> None:
        for sample in group.samples:
            generation, outcome = sample.generation, sample.outcome
            self._samples.labels(generation.finish.value, outcome.verdict).inc()
            self._sampled.inc(len(generation.output_ids))
            self._length.observe(len(generation.output_ids))
            self._spans.observe(len(generation.versions))
            self._judging.labels(outcome.verdict).observe(outcome.seconds)

    def _set(self, name: str, value: float) -> None:
        """Set a gauge; `name` may have one label."""
        if (match := _WITH_LABEL.match(name)) is not None:
            self._gauge(match["name"], match["label"]).labels(match["value"]).set(value)
        else:
            self._gauge(f"last_{name}" if name in _COUNTED else name).set(value)

    def _gauge(self, name: str, *labels: str) -> Gauge:
        if name not in self._gauges:
            text = "See docs/metrics.md"
            self._gauges[name] = Gauge(PREFIX + name, text, labels, registry=self.registry)
        return self._gauges[name]

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS_BUCKETS, *labels: str
    ) -> Histogram:
        return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self.registry)


class _GapHistogram:
    """Histogram of |learner - sampler| log-probability over trained tokens, from the shares in each step's metrics."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._sum = 0.0
        self._above = dict.fromkeys(GAP_EDGES, 0.0)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add a step's tokens if its metrics contain the shares."""
        tokens = metrics.get("tokens_trained", 0.0)
        if "logprob_gap_abs_mean" not in metrics:
            return
        self._tokens += tokens
        if math.isfinite(mean := metrics["logprob_gap_abs_mean"]):  # the sum of a step that diverged would stay NaN
            self._sum += tokens * mean
        for edge in GAP_EDGES:
            self._above[edge] += tokens * metrics[f"{GAP_ABOVE}{edge:g}"]

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram; prometheus_client calls this at each scrape."""
        buckets = [(f"{edge:g}", self._tokens - above) for edge, above in self._above.items()]
        text = "Difference of log-probabilities of trained tokens between learner and sampler"
        yield HistogramMetricFamily(
            f"{PREFIX}logprob_gap_abs", text, buckets=[*buckets, ("+Inf", self._tokens)], sum_value=self._sum
        )


class _Watched:
    """Collector of totals that are read at each scrape."""

    def __init__(self) -> None:
        self.totals: Callable[[], Mapping[str, float]] = dict

    def collect(self) -> Iterator[Metric]:
        """Yield the totals; prometheus_client calls this at each scrape."""
        families: dict[str, CounterMetricFamily] = {}
        for full, value in self.totals().items():
            match = _WITH_LABEL.match(full)
            name, labels = (match["name"], {match["label"]: match["value"]}) if match else (full, {})
            family = families.setdefault(
                name, CounterMetricFamily(PREFIX + name, "See docs/metrics.md", labels=list(labels))
            )
            family.add_metric(list(labels.values()), value)
        yield from families.values()
