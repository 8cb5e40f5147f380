"""When a run's status is written: what decides at once, figures now and then, and what of one that cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from plan_values import checkpoint
from plan_world import START, UID, running
from pydantic import ValidationError
from run_harness import KEY, Harness, Observer, manifest, phases, progressing, running_controller

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.progress import CheckpointSummary, ProgressReply, ProgressReport, TrainerPhase
from deepcoder_operator import metrics
from deepcoder_operator.controllers import reconcile
from deepcoder_operator.controllers.reconcile import why_unreadable
from deepcoder_operator.domain.draft import RESYNC_SECONDS, Plan
from deepcoder_operator.domain.world import (
    Beat,
    ClusterView,
    PodView,
    PoolView,
    RayJobView,
    World,
)
from deepcoder_operator.kube import errors
from deepcoder_operator.progress_board import FIGURES_SECONDS


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    async with running_controller() as made:
        yield made


class Beats(Observer):
    """An attempt that runs, and at every look, a second after the one before, has reported a step more."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.phase = TrainerPhase.TRAINING

    async def observe(self, run: Any, now: Any, obstacle: Any, outdated: Any) -> World:
        self.step += 1
        at = now() + timedelta(seconds=self.step)
        name = "demo-s0-a1"
        job = RayJobView(name, "job", UID, 1, job_status="RUNNING", deployment_status="Running")
        head = PodView(f"{name}-head", "head", "head", 1, phase="Running", ready=True)
        report = ProgressReport(
            ordinal=1, stage="short", phase=self.phase, step=self.step, max_steps=20, sent_at=at
        )  # fmt: skip
        pool = PoolView("demo-sandbox", True, f"{self.step} of 4 judges are ready")
        return World(rayjob=job, cluster=ClusterView("c", True), pods=(head,), pool=pool,
                     beat=Beat(report, at, "head", at), watching_since=at, seen_at=at)  # fmt: skip


def intended() -> dict[str, Any]:
    """A run whose first attempt was intended."""
    made = manifest()
    attempt = {"ordinal": 1, "stageIndex": 0, "name": "demo-s0-a1", "intendedTime": "2026-01-01T00:00:00Z"}
    provenance = {"configDigest": "sha256:" + "0" * 64, "image": "i", "model": "m", "seed": 0, "storage": "s3://b/k",
                  "operatorVersion": "1"}  # fmt: skip
    return made | {"status": {"ordinal": 1, "attempt": attempt, "provenance": provenance}}


async def test_figures_alone_are_not_written_with_every_look(harness: Harness) -> None:
    """Of a dozen looks at a run that reports a step each time, the statuses of the first few passes are written."""
    beats = harness.controller._reconciler.observer = Beats()

    async def look(times: int) -> None:
        """Looks that begin one after the other, so all but the last are over."""
        for _ in range(times):
            before = beats.step
            harness.controller.wake(KEY)
            await harness.until(lambda: beats.step > before)  # noqa: B023

    harness.controller.seen(harness.api.change(intended()))
    await harness.until(lambda: "Running" in phases(harness.api))
    await look(2)
    settled = len(harness.api.writes)
    await look(10)
    assert len(harness.api.writes) == settled


async def test_what_was_held_back_is_written_once_it_is_due(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = [0.0], [0]

    def look(run: Any, *_: Any) -> Plan:
        looks[0] += 1
        return Plan(run.status.model_copy(update={"gpus": looks[0]}))

    monkeypatch.setattr(reconcile, "plan", look)
    monkeypatch.setattr(harness.controller._reconciler, "clock", lambda: now[0])
    harness.controller.seen(harness.api.change(manifest()))
    await harness.until(lambda: harness.api.writes)
    for at, written in ((14.0, 1), (15.0, 2), (29.0, 2), (30.0, 3)):
        now[0], before = at, looks[0]
        harness.controller.wake(KEY)
        await harness.until(lambda: looks[0] > before)  # noqa: B023
        await asyncio.sleep(0.05)
        assert len(harness.api.writes) == written, at


async def test_times_of_reports_alone_wait_a_minute_and_cause_no_pass_meanwhile(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def look(run: Any, *_: Any) -> Plan:
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=now[0])
        attempt = run.status.attempt.model_copy(update={"heartbeat_time": at})
        return Plan(run.status.model_copy(update={"attempt": attempt}))

    reconciler = harness.controller._reconciler
    monkeypatch.setattr(reconcile, "plan", look)
    monkeypatch.setattr(reconciler, "clock", lambda: now[0])
    memory = reconcile.Memory(harness.api.change(intended()))
    for at, writes, wait in ((0.0, 1, RESYNC_SECONDS), (20.0, 1, 40.0), (59.0, 1, 1.0), (60.0, 2, RESYNC_SECONDS)):
        now[0] = at
        assert await reconciler.reconcile(KEY, memory) == wait
        assert len(harness.api.writes) == writes, at


async def test_storage_is_not_asked_more_often_for_a_checkpoint_that_it_does_not_prove(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every judge of a pool that starts causes a pass; the checkpoint is damaged, or its bucket is away."""
    cluster = running()
    made = checkpoint("short", 7, 1, at=cluster.now)
    summary = CheckpointSummary(uri=made.uri, digest=made.digest, step=made.step)

    class Looks(Observer):
        async def observe(self, run: Any, now: Any, obstacle: Any, outdated: Any) -> World:
            cluster.run = run
            return cluster.world()

    reconciler: Any = harness.controller._reconciler
    monkeypatch.setattr(reconciler, "observer", Looks())
    monkeypatch.setattr(reconciler, "now", lambda: cluster.now)
    monkeypatch.setattr(reconciler, "clock", lambda: (cluster.now - START).total_seconds())
    memory = reconcile.Memory(harness.api.change(manifest() | {"status": cluster.run.status.to_wire()}))
    for second in range(120):
        if second % 5 == 0:
            cluster.report(8)
            assert cluster.beat is not None
            report = cluster.beat.report.model_copy(update={"latest_checkpoint": summary})
            cluster.beat = replace(cluster.beat, report=report)
        await reconciler.reconcile(KEY, memory)
        cluster.advance(1)
    assert 0 < cluster.questions <= 120 / FIGURES_SECONDS + 1


async def test_status_that_cannot_be_read_is_said_in_its_conditions_and_otherwise_left_as_it_is(
    harness: Harness,
) -> None:
    """Another release wrote it: what this one does not know it must not lose."""
    made = manifest()
    made["status"] = {"ordinal": "many", "newerField": 7, "conditions": [
        {"type": "Complete", "status": "False", "reason": "NotFinished", "message": "", "observedGeneration": 1,
         "lastTransitionTime": "2026-01-01T00:00:00Z"},
    ]}  # fmt: skip
    harness.controller.seen(harness.api.change(made))
    await harness.until(lambda: harness.api.writes)
    written = harness.api.writes[0]["status"]
    assert (written["ordinal"], written["newerField"]) == ("many", 7)
    assert progressing(harness.api) == ("False", "SpecUnreadable")
    said = {c["type"]: c for c in written["conditions"]}
    assert said["Complete"]["reason"] == "NotFinished"
    assert "status.ordinal" in said["Progressing"]["message"]
    harness.controller.wake(KEY)
    await asyncio.sleep(0.1)
    assert len(harness.api.writes) == 1
    assert harness.events == ["SpecUnreadable"]


@pytest.mark.parametrize(
    ("recipe", "mend"),
    [
        ({"deterministic": True, "refill": True}, "deterministic: false: fix the field; if the API server says"),
        ({"fromTheFuture": 1}, "a newer release may have written it: upgrade the operator, or remove the field"),
        ({"loss": "FromTheFuture"}, "a newer release may have written it: upgrade the operator, or remove the field"),
    ],
)
@pytest.mark.parametrize("live", [True, False])
def test_run_that_cannot_be_read_is_told_how_to_mend_it_and_what_is_not_done(
    recipe: dict[str, Any], mend: str, live: bool
) -> None:
    made = manifest()
    made["spec"]["recipe"] |= recipe
    with pytest.raises(ValidationError) as refused:
        DeepCoderRun.model_validate(made)
    told = why_unreadable(refused.value, live=live)
    assert told.startswith("spec.recipe")
    assert mend in told
    assert ("its attempt continues by itself" in told) == live


async def test_run_that_cannot_be_read_is_told_of_even_if_its_status_cannot_be_written(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> None:
        raise errors.Invalid('spec.dataset.curate: Invalid value: "boolean": must be of type object', 422)

    monkeypatch.setattr(harness.api, "patch", refuse)
    made = manifest()
    made["spec"]["stages"] = "many"
    harness.controller.seen(harness.api.change(made))
    await harness.until(lambda: harness.events)
    assert harness.events[0] == "SpecUnreadable"


async def test_status_that_the_api_server_refuses_is_said_in_an_event(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: Any) -> None:
        raise errors.Invalid("status.attempt.message: Too long: may not be more than 1024 bytes", 422)

    monkeypatch.setattr(harness.api, "replace_status", refuse)
    before = metrics.STATUS_REFUSED._value.get()
    harness.controller.seen(harness.api.change(manifest()))
    await harness.until(lambda: harness.events)
    assert harness.events == ["StatusRefused"]
    assert metrics.STATUS_REFUSED._value.get() == before + 1


@pytest.mark.parametrize(("waits", "wanted"), [(True, 0), (False, 1)], ids=["waits for judges", "trains"])
async def test_run_that_becomes_unreadable_wants_a_judge_only_where_an_attempt_of_it_trains_on(
    harness: Harness, waits: bool, wanted: int
) -> None:
    """It asks for no GPU any more, so nobody would ever use the judge that it waited for."""
    if waits:
        harness.board.wait(KEY, "judges")
    else:
        harness.board.post(KEY, run_uid=UID, ordinal=1, reply=ProgressReply(), pool="judges", head_uid="head")
    assert harness.board.runs_at("ml", "judges") == 1
    made = manifest()
    made["spec"]["stages"] = "many"
    harness.controller.seen(harness.api.change(made))
    await harness.until(lambda: harness.events)
    assert harness.board.runs_at("ml", "judges") == wanted


async def test_run_counts_as_one_of_the_pool_that_judges_for_its_attempt_and_not_of_the_specs(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old pool would otherwise go to zero while the attempt still sends its programs there."""
    monkeypatch.setattr(reconcile, "plan", lambda run, *_: Plan(run.status, requeue_after=60))
    made = manifest()
    made["spec"]["sandbox"] = {"poolRef": {"name": "new"}}
    attempt = {"ordinal": 1, "stageIndex": 0, "name": "demo-s0-a1", "intendedTime": "2026-01-01T00:00:00Z"}
    made["status"] = {"ordinal": 1, "attempt": attempt | {"headUid": "head", "pool": "old"}}
    harness.controller.seen(harness.api.change(made))
    await harness.until(lambda: KEY in harness.board.entries)
    assert (harness.board.runs_at("ml", "old"), harness.board.runs_at("ml", "new")) == (1, 0)
