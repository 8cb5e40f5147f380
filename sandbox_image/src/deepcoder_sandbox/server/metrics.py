"""Prometheus metrics of one judge.

Events are counted where they happen; gauges are read from `capacity` when Prometheus asks. A duplicate name raises when
the judge starts; counting itself does not fail.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from deepcoder_contracts.judge import Capacity, JudgeResponse, Tier
from deepcoder_sandbox.observer import Observer, Phase, Recycled
from deepcoder_sandbox.submission import Submission

_PREFIX = "deepcoder_sandbox_"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The registry and its metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)  # descriptors and memory, to show leaks
        self._verdicts = Counter(f"{_PREFIX}verdicts", "Verdicts, one per test.", ["verdict"], registry=registry)
        self._submissions = Counter(
            f"{_PREFIX}submissions", "Submissions answered.", ["outcome", "scoring"], registry=registry
        )
        self._phases = Histogram(
            f"{_PREFIX}phase_seconds",
            "Wall-clock seconds of a submission by phase: queue, zygote (starting one), run, compare.",
            ["phase"],
            buckets=_SECONDS,
            registry=registry,
        )
        for phase in Phase:
            self._phases.labels(phase.value)
        self._program = Counter(f"{_PREFIX}program_cpu_seconds", "CPU seconds used by programs.", registry=registry)
        self._recycled = Counter(
            f"{_PREFIX}recycled_zygotes", "Zygotes replaced, by reason.", ["reason"], registry=registry
        )
        for reason in Recycled:
            self._recycled.labels(reason.value)
        self._refused = Counter(
            f"{_PREFIX}refused_requests", "Requests refused, by status.", ["status"], registry=registry
        )
        for status in ("400", "401", "413", "429", "503"):
            self._refused.labels(status)

        self._repeated = Counter(
            f"{_PREFIX}repeated_answers", "Requests answered from a running or finished judgement.", registry=registry
        )

    def observer(self) -> Observer:
        """Return the observer that counts the pool's work."""
        return Observer(
            spent=lambda phase, seconds: self._phases.labels(phase.value).observe(seconds),
            judged=self._judged,
            recycled=lambda reason: self._recycled.labels(reason.value).inc(),
        )

    def _judged(self, submission: Submission, answer: JudgeResponse) -> None:
        outcome = {True: "passed", False: "failed", None: "error"}[answer.passed]
        self._submissions.labels(outcome, submission.request.scoring.value).inc()
        for verdict in answer.verdicts:
            self._verdicts.labels(verdict.verdict.value).inc()
            self._program.inc(verdict.seconds)

    def refused(self, status: int) -> None:
        """Count a refused request."""
        self._refused.labels(str(status)).inc()

    def repeated(self) -> None:
        """Count a request that needs no judging, because its answer is known or pending."""
        self._repeated.inc()

    def watch(self, capacity: Callable[[], Capacity]) -> None:
        """Export the values of `capacity` whenever metrics are read."""
        first = capacity()
        for name, text, read in (
            ("slots", "Programs that the judge runs at once.", lambda: capacity().slots),
            ("busy_slots", "Slots in use.", lambda: capacity().busy),
            ("queued_submissions", "Submissions waiting for a slot.", lambda: capacity().queued),
            (
                "oldest_wait_seconds",
                "Time that the oldest waiting submission has waited.",
                lambda: capacity().oldest_wait_s,
            ),
        ):
            Gauge(_PREFIX + name, text, registry=self.registry).set_function(read)
        tier = Gauge(f"{_PREFIX}isolation_tier", "1 for the isolation tier in force.", ["tier"], registry=self.registry)
        for each in Tier:
            tier.labels(each.value).set(each is first.tier)
        limits = Gauge(
            f"{_PREFIX}limit_enforced", "1 for a limit that is really in force.", ["limit"], registry=self.registry
        )
        for limit, enforced in first.limits.items():
            limits.labels(limit).set(enforced)

    def watch_memory(self, held: Callable[[], dict[str, int]]) -> None:
        """Export the values of `held` whenever metrics are read."""
        gauge = Gauge(f"{_PREFIX}held_bytes", "Memory held by requests, by purpose.", ["what"], registry=self.registry)

        def read(what: str) -> Callable[[], float]:
            return lambda: held()[what]

        for what in held():
            gauge.labels(what).set_function(read(what))

    def exposition(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)
