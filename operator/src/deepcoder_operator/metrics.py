"""Prometheus metrics of the run controller and of what it uses.

Labels are bounded: phases, reasons and results, never names of runs. Those that are known begin at 0, so that a query
that finds nothing has asked for something that does not exist.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from prometheus_client import Counter, Gauge, Histogram

from deepcoder_contracts.api.run_status import Phase

STARTED = Gauge("deepcoder_operator_start_time_seconds", "When this process began, since the epoch")
STARTED.set_to_current_time()
RUNS = Gauge("deepcoder_operator_runs", "Runs by phase", ["phase"])
OLDEST_RUN = Gauge(
    "deepcoder_operator_oldest_run_seconds",
    "How long the run that has been in a phase longest has been in it, as this replica knows",
    ["phase"],
)
PASSES = Counter("deepcoder_operator_passes_total", "Passes over a run by result", ["result"])
PASS_SECONDS = Histogram(
    "deepcoder_operator_pass_seconds",
    "Duration of a pass over a run",
    buckets=(0.002, 0.005, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
STATUS_WRITES = Counter("deepcoder_operator_status_writes_total", "Writes of a run's status")
STATUS_REFUSED = Counter("deepcoder_operator_status_refused_total", "Statuses that the API server found invalid")
ACTIONS = Counter("deepcoder_operator_actions_total", "Actions carried out by kind", ["action"])
FAILURES = Counter("deepcoder_operator_attempt_failures_total", "Failed attempts by reason", ["reason"])
WARNED_REASONS = ("ArtifactsLeft", "CheckpointLost", "Failed", "LeftBehind", "PostMortemPartly")
"""Of warnings after which somebody has to look: runs that are given up, GPUs or objects that nobody counts any more,
what is lost for good."""

WARNINGS = Counter("deepcoder_operator_warnings_total", "Warnings after which somebody has to look", ["reason"])
for _reason in WARNED_REASONS:
    WARNINGS.labels(reason=_reason)
WAITING_FOR_STORAGE = Gauge(
    "deepcoder_operator_runs_waiting_for_storage", "Runs whose last question storage did not answer", ["reason"]
)
HINDERED = Gauge(
    "deepcoder_operator_runs_hindered", "Runs for which the last thing that had to be done could not be", ["reason"]
)
for _reason in ("Forbidden", "KubeRayNotFound", "NameConflict", "RayJobForbidden"):
    HINDERED.labels(reason=_reason)
STORAGE_SECONDS = Histogram(
    "deepcoder_operator_storage_seconds",
    "Duration of a question to storage",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60),
)
STORAGE_PROBLEMS = Counter("deepcoder_operator_storage_problems_total", "Questions storage did not answer", ["reason"])
EVENTS_LOST = Counter("deepcoder_operator_events_lost_total", "Events that were not posted, by cause", ["cause"])
API_REQUESTS = Counter("deepcoder_operator_api_requests_total", "Requests sent to the API server", ["method"])
STORAGE_REQUESTS = Counter("deepcoder_operator_storage_requests_total", "Requests sent to storage", ["method"])


for _phase in Phase:
    RUNS.labels(phase=str(_phase))
    OLDEST_RUN.labels(phase=str(_phase))
for _result in ("ok", "conflict", "error"):
    PASSES.labels(result=_result)
for _cause in ("QueueFull", "Stopping"):
    EVENTS_LOST.labels(cause=_cause)


class Tally:
    """Keeps a gauge of how many things are in each state; the empty state is not counted."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._counts: dict[str, int] = {}

    def move(self, before: str, after: str) -> None:
        """One of them has changed."""
        for state, by in ((before, -1), (after, 1)):
            if state and before != after:
                self._counts[state] = self._counts.get(state, 0) + by
                self._gauge.labels(state).set(self._counts[state])


class Oldest:
    """Keeps a gauge of how long that which has been in each state longest has been in it; 0 where nothing is."""

    def __init__(self, gauge: Gauge, clock: Callable[[], float] = time.monotonic) -> None:
        self._gauge, self._clock = gauge, clock
        self._since: dict[str, dict[Hashable, float]] = {}

    def move(self, thing: Hashable, before: str, after: str) -> None:
        """One of them has changed; it goes to the end of those in its new state."""
        if before == after:
            return
        self._since.get(before, {}).pop(thing, None)
        if after:
            if after not in self._since:
                self._gauge.labels(after).set_function(lambda: self._seconds(after))
            self._since.setdefault(after, {})[thing] = self._clock()

    def _seconds(self, state: str) -> float:
        first = next(iter(self._since[state].values()), None)
        return 0.0 if first is None else self._clock() - first
