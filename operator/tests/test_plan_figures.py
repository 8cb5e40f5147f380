"""Figures in the status: progress, results, and what a run has cost."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta

import pytest
from plan_world import Cluster, running
from run_manifests import LONGER, TRAIN

from deepcoder_contracts.api.run_status import Phase, ProvenanceStatus, StagePhase
from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.progress import CheckpointSummary
from deepcoder_operator.domain.heartbeat import reply
from deepcoder_operator.domain.world import Problem

GATE = {"all": [{"metric": "reward_mean", "op": "Ge", "value": 0.5}]}


def test_progress_is_written_at_most_each_15_seconds() -> None:
    cluster = running()
    cluster.report(1, reward_mean=0.5)
    cluster.settle()
    assert cluster.run.status.progress is not None
    assert cluster.run.status.progress.display == "1/20"
    for step in range(2, 5):
        cluster.advance(4)
        cluster.report(step)
        cluster.settle()
        assert cluster.run.status.progress.step == 1
    cluster.advance(4)
    cluster.settle()
    assert cluster.run.status.progress.step == 4


def test_times_of_the_last_report_and_of_the_last_step_are_told_apart() -> None:
    cluster = running()
    for step, steps_later in ((1, True), (1, False), (2, True)):
        cluster.advance(20)
        cluster.report(step)
        cluster.settle()
        attempt = cluster.run.status.attempt
        assert attempt is not None
        assert attempt.heartbeat_time == cluster.now
        assert (attempt.step_time == cluster.now) is steps_later


def test_stage_that_ended_right_after_a_report_shows_all_its_steps() -> None:
    cluster = running(stages=[TRAIN])
    cluster.report(14, reward_mean=0.5)
    cluster.settle()
    cluster.advance(4)
    cluster.report(20)
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.phase is Phase.COMPLETE
    assert cluster.run.status.progress is not None
    assert (cluster.run.status.progress.step, cluster.run.status.progress.display) == (20, "20/20")


def test_metrics_that_no_number_shows_are_left_out_and_small_ones_keep_their_digits() -> None:
    cluster = running()
    cluster.report(1, reward_mean=0.64)
    cluster.settle()
    cluster.advance(20)
    cluster.report(
        2, reward_mean=math.nan, loss=math.inf, lr=1e-6, kl=0.000123456, tokens=1.5e9, huge=1e300, tiny=1e-300
    )
    cluster.settle()
    progress = cluster.run.status.progress
    assert progress is not None
    assert progress.metrics == {"lr": "0.000001", "kl": "0.0001235", "tokens": "1500000000", "tiny": "0"}
    assert progress.reward is None
    assert cluster.run.status.stages[0].reward == "0.64", "the last that was one"


def test_gate_on_a_metric_that_no_number_shows_is_unmet_and_says_so() -> None:
    stages = [TRAIN | {"promoteWhen": GATE | {"otherwise": "Hold"}}, LONGER]
    cluster = running(stages=stages)
    values = {"reward_mean": math.nan}
    cluster.save(20, final=True, gate=GateRecord(met=False, values=values, window={"reward_mean": 1}))
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.phase is Phase.HELD
    assert "reward_mean" not in cluster.run.status.stages[0].results
    assert "reward_mean Ge 0.5: no value" in (cluster.run.status.stages[0].message or "")


def test_status_has_room_for_what_evaluations_came_to_before_their_other_figures() -> None:
    cluster = running(stages=[TRAIN, LONGER])
    sets = [f"set{n:02}" for n in range(16)]
    figures = ("pass_at_1", "pass_at_1_high", "pass_at_1_low", "response_tokens_mean", "truncated_ratio", "unjudged")
    cluster.save(20, final=True, gate=None, **{f"eval/{s}/{f}": 0.5 for s in sets for f in figures}, zeal=1.0)
    cluster.leave(0, "Completed")
    cluster.settle()
    results = cluster.run.status.stages[0].results
    assert len(results) == 64
    assert {name for name in results if name.endswith("/pass_at_1")} == {f"eval/{s}/pass_at_1" for s in sets}


def test_gpu_seconds_count_from_scheduled_to_gone() -> None:
    cluster = running()
    head = cluster.pods["demo-s0-a1-head"]
    worker = replace(head, name="w", uid="w", role="learner", gpus=8, scheduled=cluster.now)
    cluster.pods["w"] = worker
    cluster.settle()
    assert cluster.run.status.gpus == 8
    cluster.advance(100)
    cluster.save(20, final=True)
    cluster.pods["w"] = replace(worker, finished=worker.scheduled + timedelta(seconds=90))  # type: ignore[operator]
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.usage.gpu_seconds == "720"
    assert cluster.run.status.usage.wasted_gpu_seconds == "0"


@pytest.mark.parametrize("node_lost", [False, True])
def test_wasted_gpu_seconds_end_with_the_attempt_and_not_with_an_outage_of_storage(node_lost: bool) -> None:
    cluster = running()
    head = cluster.pods["demo-s0-a1-head"]
    cluster.pods["w"] = replace(head, name="w", uid="w", role="learner", gpus=8, scheduled=cluster.now)
    cluster.settle()
    cluster.advance(100)
    if node_lost:
        cluster.pods = {}
    cluster.leave(1)
    cluster.storage_problem = Problem("StorageUnreachable", "no route")
    cluster.settle()
    cluster.advance(3600)
    cluster.storage_problem = None
    cluster.settle()
    assert cluster.run.status.usage.wasted_gpu_seconds == "800"


def test_judges_and_pods_that_come_up_one_by_one_change_no_status() -> None:
    cluster = running()
    head = cluster.pods["demo-s0-a1-head"]
    for count in range(4):
        assert cluster.pool is not None
        cluster.pool = replace(cluster.pool, message=f"{count} of 4 judges are ready", replicas=count)
        cluster.pods[f"w{count}"] = replace(head, name=f"w{count}", uid=f"w{count}", role="sampler")
        before = cluster.run.status
        cluster.step()
        assert cluster.run.status == before


def test_provenance_has_what_the_manifest_tells_while_the_attempt_still_runs() -> None:
    cluster = running()
    cluster.save(5)
    made = {"torch": "2.9.0"}
    cluster.stored["short"] = replace(cluster.stored["short"], versions=made)
    report_of_its_newest(cluster, 5)
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    assert provenance_of(cluster).versions == made


def test_attempt_is_told_the_image_that_its_own_head_runs_and_never_the_one_before() -> None:
    cluster = running()
    head = cluster.pods["demo-s0-a1-head"]
    cluster.pods[head.name] = replace(head, image_id="registry/trainer@sha256:1")
    cluster.settle()
    assert provenance_of(cluster).image_id == "registry/trainer@sha256:1"
    assert reply(cluster.run.status, cluster.now).image_id == "registry/trainer@sha256:1"
    cluster.leave(1)
    cluster.settle()
    cluster.advance(60)
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    assert cluster.run.status.ordinal == 2
    assert reply(cluster.run.status, cluster.now).image_id is None, "its node has not told yet"


def test_model_of_the_gpus_is_what_the_newest_attempt_reports() -> None:
    cluster = running()
    cluster.report(3)
    assert cluster.beat is not None
    told = cluster.beat.report.model_copy(update={"accelerator": "NVIDIA H100 80GB HBM3"})
    cluster.beat = replace(cluster.beat, report=told)
    cluster.settle()
    assert provenance_of(cluster).accelerator == "NVIDIA H100 80GB HBM3"
    cluster.leave(1)
    cluster.settle()
    cluster.advance(60)
    cluster.settle()
    assert cluster.run.status.ordinal == 2
    assert provenance_of(cluster).accelerator is None, "the next one may get others"


def provenance_of(cluster: Cluster) -> ProvenanceStatus:
    assert cluster.run.status.provenance is not None
    return cluster.run.status.provenance


def test_provenance_has_what_the_manifest_tells_and_keeps_it() -> None:
    cluster = running()
    cluster.save(20, final=True)
    made = {"torch": "2.9.0", "vllm": "0.12.0"}
    code, data = sha256_digest(b"code"), sha256_digest(b"data")
    cluster.stored["short"] = replace(cluster.stored["short"], code_digest=code, dataset_digest=data, versions=made)
    cluster.leave(0, "Completed")
    cluster.settle()
    provenance = cluster.run.status.provenance
    assert provenance is not None
    assert (provenance.code_digest, provenance.dataset_digest, provenance.versions) == (code, data, made)
    cluster.start_job()
    cluster.leave(1)
    cluster.settle()
    assert cluster.run.status.provenance == provenance


def test_storage_is_asked_once_for_a_checkpoint_and_not_for_each_report() -> None:
    cluster = running()
    cluster.questions = 0
    cluster.save(1)
    cluster.settle()
    assert cluster.questions == 0, "no report has named it"
    for step in range(1, 60):
        cluster.advance(20)
        report_of_its_newest(cluster, step)
        cluster.settle()
    assert cluster.questions == 1


def test_storage_is_not_asked_while_a_run_pauses_after_a_failure() -> None:
    cluster = running()
    cluster.leave(1)
    cluster.settle()
    cluster.questions = 0
    cluster.advance(9)
    cluster.settle()
    assert cluster.questions == 0
    cluster.advance(1)
    cluster.settle()
    assert cluster.questions == 1


def test_exit_of_a_trainer_that_nobody_asked_to_stop_is_no_end_before_its_job_says_how_it_ended() -> None:
    """The bucket may be looked at for the last checkpoint in the second between exit and the job's success."""
    cluster = running()
    cluster.save(20, final=True)
    report_of_its_newest(cluster, 20)
    cluster.write_exit(0, "Completed")
    cluster.advance(20)
    cluster.step()
    assert cluster.run.status.latest_checkpoint is not None, "the bucket was looked at"
    assert cluster.run.status.phase is Phase.RUNNING
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.stages[0].phase is StagePhase.COMPLETE
    assert cluster.run.status.stages[0].failures == 0


def report_of_its_newest(cluster: Cluster, step: int) -> None:
    """A heartbeat that names the newest checkpoint."""
    newest = cluster.stored["short"].newest
    assert newest is not None
    cluster.report(step)
    assert cluster.beat is not None
    summary = CheckpointSummary(uri=newest.uri, digest=newest.digest, step=newest.step)
    cluster.beat = replace(cluster.beat, report=cluster.beat.report.model_copy(update={"latest_checkpoint": summary}))
