"""What the metrics say of runs that wait for storage, which alerts look at for as long as it lasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from plan_world import START
from prometheus_client import REGISTRY, CollectorRegistry, Gauge
from run_harness import KEY, Observer, manifest, running_controller

from deepcoder_contracts.api.run_status import RunStatus
from deepcoder_operator.controllers.reconcile import Memory
from deepcoder_operator.domain.draft import EventRecord, Plan
from deepcoder_operator.domain.world import Problem, RayJobView, StorageView, World
from deepcoder_operator.metrics import HINDERED, OLDEST_RUN, WARNED_REASONS, WARNINGS, Namespaces, Oldest

WAITING = "deepcoder_operator_runs_waiting_for_storage"
AWAY = Problem("StorageUnreachable", "no answer in 15 s")


def waiting(reason: str = AWAY.reason) -> float:
    return REGISTRY.get_sample_value(WAITING, {"namespace": "ml", "reason": reason}) or 0


@dataclass
class Answers(Observer):
    """Sees what storage answered, None where it was not asked."""

    storage: StorageView | None = None

    async def observe(self, run: Any, now: Any, obstacle: Any, outdated: Any) -> World:
        return World(storage=self.storage, obstacle=obstacle)


async def test_run_counts_as_waiting_for_storage_from_a_question_in_vain_to_its_answer() -> None:
    async with running_controller() as harness:
        answers = Answers(storage=StorageView(problem=AWAY))
        harness.controller._reconciler.observer = answers
        harness.controller.seen(manifest())
        await harness.until(lambda: waiting() == 1)
        answers.storage = None
        harness.controller.wake(KEY)
        await harness.until(lambda: not harness.controller._workers[KEY].wakeup.is_set())
        assert waiting() == 1, "not asked is not answered"
        answers.storage = StorageView()
        harness.controller.wake(KEY)
        await harness.until(lambda: waiting() == 0)


async def test_run_that_is_suspended_waits_for_no_storage() -> None:
    """It asks nothing until it is resumed, perhaps weeks after the bucket was mended."""
    async with running_controller() as harness:
        answers = Answers(storage=StorageView(problem=AWAY))
        harness.controller._reconciler.observer = answers
        harness.controller.seen(manifest())
        await harness.until(lambda: waiting() == 1)
        answers.storage, suspended = None, manifest(99)
        suspended["spec"]["suspend"] = True
        harness.controller.seen(harness.api.change(suspended))
        await harness.until(lambda: waiting() == 0)


async def test_run_for_which_something_is_refused_is_counted_until_it_is_not() -> None:
    def hindered() -> float | None:
        labels = {"namespace": "ml", "reason": "RayJobForbidden"}
        return REGISTRY.get_sample_value("deepcoder_operator_runs_hindered", labels)

    async with running_controller() as harness:
        harness.executor.obstacle = Problem("RayJobForbidden", "exceeded quota")
        harness.controller.seen(manifest())
        assert hindered() == 0, "it is there from the first run on"
        await harness.until(lambda: hindered() == 1)
        harness.executor.obstacle = None
        harness.controller.wake(KEY)
        await harness.until(lambda: hindered() == 0)


async def test_run_whose_rayjob_has_a_name_that_is_taken_is_counted_though_nothing_was_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job: list[RayJobView | None] = [RayJobView("demo-s0-a1", "theirs", "another-uid", 0)]

    async def observe(*_: Any) -> World:
        return World(rayjob=job[0])

    def hindered() -> float | None:
        labels = {"namespace": "ml", "reason": "NameConflict"}
        return REGISTRY.get_sample_value("deepcoder_operator_runs_hindered", labels)

    async with running_controller() as harness:
        monkeypatch.setattr(harness.observer, "observe", observe)
        attempt = {"ordinal": 1, "stageIndex": 0, "name": "demo-s0-a1", "intendedTime": START.isoformat()}
        monkeypatch.setattr(harness.controller._reconciler, "now", lambda: START)
        harness.controller.seen(harness.api.change(manifest() | {"status": {"ordinal": 1, "attempt": attempt}}))
        await harness.until(lambda: hindered() == 1)
        job[0] = None
        harness.controller.wake(KEY)
        await harness.until(lambda: hindered() == 0)


async def test_run_that_cannot_be_read_is_counted_until_it_can_be() -> None:
    def hindered() -> float | None:
        labels = {"namespace": "ml", "reason": "SpecUnreadable"}
        return REGISTRY.get_sample_value("deepcoder_operator_runs_hindered", labels)

    HINDERED.clear()  # of runs that other tests have left behind
    async with running_controller() as harness:
        broken = manifest(2)
        broken["spec"]["stages"] = "none that this release knows"
        harness.controller.seen(harness.api.change(broken))
        await harness.until(lambda: hindered() == 1)
        assert harness.api.stored is not None
        harness.controller.seen(harness.api.change(manifest(9)))
        await harness.until(lambda: hindered() == 0)


async def test_run_that_is_gone_waits_for_nothing() -> None:
    async with running_controller() as harness:
        harness.controller._reconciler.observer = Answers(storage=StorageView(problem=AWAY))
        harness.controller.seen(manifest())
        await harness.until(lambda: waiting() == 1)
        harness.controller.gone(manifest())
        await harness.until(lambda: waiting() == 0)


async def test_warning_after_which_somebody_has_to_look_is_counted_by_its_reason() -> None:
    def counted(reason: str) -> float | None:
        return REGISTRY.get_sample_value("deepcoder_operator_warnings_total", {"namespace": "ml", "reason": reason})

    Namespaces().enter("ml")
    before = {reason: counted(reason) for reason in WARNED_REASONS}
    assert None not in before.values(), "each is there from the first run on: a first one is seen as an increase"
    told = Plan(RunStatus(), events=(EventRecord("LeftBehind", "2 pods", warning=True), EventRecord("Admitted", "")))
    async with running_controller() as harness:
        harness.controller._reconciler._announce(Memory(manifest()), manifest(), told)
    assert {r: counted(r) for r in WARNED_REASONS} == before | {"LeftBehind": (before["LeftBehind"] or 0) + 1}
    assert counted("Admitted") is None


def test_age_of_a_phase_is_that_of_the_run_that_has_been_in_it_longest() -> None:
    now, registry = 0.0, CollectorRegistry()
    oldest = Oldest(Gauge("oldest_seconds", "…", ["phase"], registry=registry), lambda: now)
    starting, running = ("Starting",), ("Running",)

    def age(phase: str) -> float | None:
        return registry.get_sample_value("oldest_seconds", {"phase": phase})

    oldest.move("first", (), starting)
    now = 60
    oldest.move("second", (), starting)
    oldest.move("first", starting, starting)
    now = 100
    assert age("Starting") == 100, "a pass that changes nothing begins nothing anew"
    oldest.move("first", starting, running)
    assert (age("Starting"), age("Running")) == (40, 0)
    now = 130
    oldest.move("second", starting, ())
    assert (age("Starting"), age("Running")) == (0, 30), "who is gone waits for nothing"


def test_what_was_counted_of_a_namespace_is_told_for_an_hour_after_its_last_run_and_then_forgotten() -> None:
    """One namespace a job, for ever, must not be a series each for ever; nor may the last warning go untold."""
    now = 0.0
    namespaces = Namespaces(lambda: now)

    def counted(namespace: str) -> float | None:
        labels = {"namespace": namespace, "reason": "LeftBehind"}
        return REGISTRY.get_sample_value("deepcoder_operator_warnings_total", labels)

    def age(namespace: str) -> float | None:
        labels = {"namespace": namespace, "phase": "Starting"}
        return REGISTRY.get_sample_value("deepcoder_operator_oldest_run_seconds", labels)

    namespaces.enter("job-1")
    namespaces.enter("job-1")
    namespaces.leave("job-1")
    now = 7200
    namespaces.enter("job-2")
    assert counted("job-1") == 0, "a run is left"
    WARNINGS.labels("job-1", "LeftBehind").inc()
    namespaces.leave("job-1")
    now += 1800
    namespaces.enter("job-3")
    assert counted("job-1") == 1
    now += 1800
    namespaces.enter("job-4")
    assert (counted("job-1"), counted("job-2")) == (None, 0)
    oldest = Oldest(OLDEST_RUN, lambda: now)
    namespaces.enter("job-1")
    oldest.move("run", (), ("job-1", "Starting"))
    now += 5
    assert (counted("job-1"), age("job-1")) == (0, 5), "it begins anew"


async def test_how_long_a_run_has_been_in_its_phase_is_served() -> None:
    def age() -> float:
        labels = {"namespace": "ml", "phase": "Pending"}
        return REGISTRY.get_sample_value("deepcoder_operator_oldest_run_seconds", labels) or 0

    async with running_controller() as harness:
        harness.controller._reconciler.observer = Answers(storage=StorageView(problem=AWAY))
        harness.controller.seen(manifest())
        await harness.until(lambda: age() > 0)
        harness.controller.gone(manifest())
        assert age() == 0
