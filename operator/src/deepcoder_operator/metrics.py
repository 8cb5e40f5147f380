"""Prometheus metrics of the run controller, the API client and storage.

Labels are bounded: namespaces, phases, reasons and results, never names of runs. Metrics about runs carry the
namespace, so that an alert shows whose run it is. Series of known label values start at 0, those of a namespace with
its first run (`Namespaces`), because Prometheus sees no increase in a counter that appears with its first count.
"""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Callable, Hashable, Iterable
from functools import partial

from prometheus_client import Counter, Gauge, Histogram

from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run_status import Phase

STARTED = Gauge("deepcoder_operator_start_time_seconds", "Time at which this process started, since the epoch")
STARTED.set_to_current_time()
RUNS = Gauge("deepcoder_operator_runs", "Runs by phase", ["namespace", "phase"])
OLDEST_RUN = Gauge(
    "deepcoder_operator_oldest_run_seconds",
    "Longest time that a run has been in its current phase, as seen by this replica",
    ["namespace", "phase"],
)
PASSES = Counter("deepcoder_operator_passes_total", "Reconcile passes over a run, by result", ["result"])
PASS_SECONDS = Histogram(
    "deepcoder_operator_pass_seconds",
    "Duration of a reconcile pass over a run",
    buckets=(0.002, 0.005, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
STATUS_WRITES = Counter("deepcoder_operator_status_writes_total", "Writes of a run's status")
STATUS_REFUSED = Counter(
    "deepcoder_operator_status_refused_total", "Status writes that the API server rejected as invalid"
)
STATUS_DROPPED = Gauge(
    "deepcoder_operator_status_dropped_fields",
    "Status fields, written within the last hour, that the API server dropped",
    ["kind"],
)
ACTIONS = Counter("deepcoder_operator_actions_total", "Actions carried out, by kind", ["action"])
FAILURES = Counter("deepcoder_operator_attempt_failures_total", "Failed attempts, by reason", ["namespace", "reason"])
WARNED_REASONS = ("ArtifactsLeft", "CheckpointLost", "Failed", "LeftBehind", "PostMortemPartly")
"""Reasons of warnings that need attention: runs that were given up, GPUs or objects that are no longer tracked, and
permanent losses."""

WARNINGS = Counter(
    "deepcoder_operator_warnings_total", "Warnings that need attention, by reason", ["namespace", "reason"]
)
WAITING_FOR_STORAGE = Gauge(
    "deepcoder_operator_runs_waiting_for_storage",
    "Runs whose last storage query failed",
    ["namespace", "reason"],
)
HINDERED = Gauge(
    "deepcoder_operator_runs_hindered",
    "Runs whose last planned action could not be carried out",
    ["namespace", "reason"],
)
STORAGE_SECONDS = Histogram(
    "deepcoder_operator_storage_seconds",
    "Duration of a storage query",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60),
)
STORAGE_PROBLEMS = Counter("deepcoder_operator_storage_problems_total", "Failed storage queries, by reason", ["reason"])
EVENTS_LOST = Counter("deepcoder_operator_events_lost_total", "Events that were not posted, by cause", ["cause"])
API_REQUESTS = Counter("deepcoder_operator_api_requests_total", "Requests sent to the API server", ["method"])
STORAGE_REQUESTS = Counter("deepcoder_operator_storage_requests_total", "Requests sent to storage", ["method"])

for _result in ("ok", "conflict", "error"):
    PASSES.labels(result=_result)
for _cause in ("QueueFull", "Stopping"):
    EVENTS_LOST.labels(cause=_cause)


_BEGIN: list[tuple[Counter | Gauge, tuple[str, ...]]] = []


def begin_in_each_namespace(metric: Counter | Gauge, values: Iterable[str]) -> None:
    """Register a metric whose series start at 0 in each namespace: one for each of these values of its second label."""
    _BEGIN.append((metric, tuple(map(str, values))))


begin_in_each_namespace(RUNS, Phase)
begin_in_each_namespace(OLDEST_RUN, Phase)
begin_in_each_namespace(FAILURES, FailureReason)
begin_in_each_namespace(WARNINGS, WARNED_REASONS)
begin_in_each_namespace(HINDERED, ("Forbidden", "KubeRayNotFound", "KubeRayTooOld", "NameConflict", "RayJobForbidden"))

State = tuple[str, ...]
"""Values of a gauge's labels, in order. () means no state, which is not counted."""


class Tally:
    """Keeps a gauge of how many things are in each state."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._counts: Counts[State] = Counts()

    def move(self, before: State, after: State) -> None:
        """Count one thing that has changed its state."""
        for state, by in ((before, -1), (after, 1)):
            if state and before != after:
                self._counts[state] += by
                self._gauge.labels(*state).set(self._counts[state])


class Oldest:
    """Keeps a gauge, for each state, of the longest time that a thing has been in it. 0 if nothing is in that state."""

    def __init__(self, gauge: Gauge, clock: Callable[[], float] = time.monotonic) -> None:
        self._gauge, self._clock = gauge, clock
        self._since: dict[State, dict[Hashable, float]] = {}

    def move(self, thing: Hashable, before: State, after: State) -> None:
        """Record that a thing has changed its state. It becomes the newest of those in its new state."""
        if before == after:
            return
        if thing in self._since.get(before, {}):
            del self._since[before][thing]
            if not self._since[before]:
                del self._since[before]
        if after:
            if after not in self._since:  # again, because the series may have been removed meanwhile
                self._gauge.labels(*after).set_function(partial(self._seconds, after))
            self._since.setdefault(after, {})[thing] = self._clock()

    def _seconds(self, state: State) -> float:
        first = next(iter(self._since.get(state, {}).values()), None)
        return 0.0 if first is None else self._clock() - first


class Namespaces:
    """Creates a namespace's series, at 0, with its first run, and removes them `KEPT_SECONDS` after its last run.

    Removing them is delayed because Prometheus still has to scrape what the last run counted. Removing them at all
    bounds the number of series if every job has a namespace of its own.
    """

    KEPT_SECONDS = 3600.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: Counts[str] = Counts()
        self._empty: dict[str, float] = {}

    def enter(self, namespace: str) -> None:
        """Count a new run of a namespace, and remove the series of namespaces that have had no run for long."""
        self._runs[namespace] += 1
        self._empty.pop(namespace, None)
        if self._runs[namespace] == 1:
            for metric, values in _BEGIN:
                for value in values:
                    metric.labels(namespace, value)
        for name, since in list(self._empty.items()):
            if self._clock() - since >= self.KEPT_SECONDS:
                del self._empty[name]
                for metric, _ in _BEGIN:
                    metric.remove_by_labels({"namespace": name})

    def leave(self, namespace: str) -> None:
        """Count a run of a namespace as gone."""
        self._runs[namespace] -= 1
        if not self._runs[namespace]:
            del self._runs[namespace]
            self._empty[namespace] = self._clock()
