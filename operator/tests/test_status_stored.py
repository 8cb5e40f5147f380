"""What the planner writes is what a real API server keeps: no field of a status is pruned or refused by the CRD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from plan_values import roundtrip
from plan_world import Cluster, make_run
from pydantic import BaseModel
from run_manifests import LONGER, TRAIN, run_manifest

from deepcoder_contracts.api.condition import MAX_MESSAGE
from deepcoder_contracts.api.run_status import MAX_CHECKPOINTS, MAX_POD_ENTRIES, RunStatus
from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.manifest import ParentRef
from deepcoder_operator.domain.provenance import MAX_VERSIONS
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import RUNS

pytestmark = pytest.mark.apiserver

GATE = {"all": [{"metric": "reward_mean", "op": "Ge", "value": 0.5}], "otherwise": "Hold"}
PARENT = ParentRef(uri="s3://deepcoder/x/y/step-000001.a001", digest=sha256_digest(b"parent"))


def statuses() -> list[RunStatus]:
    """Statuses of one run that together have a value in every field."""
    stages = [TRAIN | {"promoteWhen": GATE}, LONGER]
    cluster = Cluster(make_run(stages=stages, scheduling={"queueName": "team"}), gpus=8)
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    cluster.report(3, reward_mean=0.5, truncated_ratio=0.125)
    cluster.settle()
    cluster.advance(100)
    cluster.save(5)
    cluster.kubelet = False
    cluster.change_job(suspended=True, job_status="")
    cluster.settle()
    seen = [cluster.run.status]
    cluster.advance(301)
    cluster.settle()
    seen.append(cluster.run.status)
    cluster.advance(100)
    cluster.settle()
    seen.append(cluster.run.status)
    cluster.kubelet = True
    cluster.settle()
    seen.append(cluster.run.status)
    cluster.advance(700)
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    cluster.save(20, final=True, gate=GateRecord(met=False, values={"reward_mean": 0.25}, window={"reward_mean": 1}))
    cluster.leave(0, "Completed")
    cluster.settle()
    seen.append(cluster.run.status)
    return [*seen, told_by_others(cluster.run.status)]


def told_by_others(status: RunStatus) -> RunStatus:
    """And what a planner's world has no source for."""
    assert status.provenance is not None
    digest = sha256_digest(b"x")
    provenance = status.provenance.model_copy(
        update={
            "image_id": "registry/trainer@sha256:1", "dataset_sha256": "0" * 64, "dataset_digest": digest,
            "code_digest": digest, "versions": {"torch": "2.9.0"}, "accelerator": "NVIDIA H100", "from_": PARENT,
        }
    )  # fmt: skip
    usage = status.usage.model_copy(
        update={"estimated_cost": "1.5", "estimated": True, "sandbox_seconds": "60", "sandbox_time": status.start_time}
    )
    attempt = {"ordinal": 3, "stageIndex": 1, "name": "demo-s1-a3", "intendedTime": "2026-01-01T00:00:00Z"}
    wire = status.model_copy(update={"provenance": provenance, "usage": usage}).to_wire()
    at = "2026-01-01T00:00:00Z"
    pod = {"name": "p", "ordinal": 3, "gpus": 8, "scheduledTime": at, "perGpuHour": "2.5"}
    wire["usage"]["pods"] = [pod | {"endedTime": at, "wastedSince": at}]
    wire["stages"][0]["completionTime"] = at
    lost = {"reasonStep": 4, "judgeSecret": "together"}
    attempt |= lost | {"parent": PARENT.model_dump(mode="json"), "clusterUid": "c", "leftBehindTime": at}
    wire |= {"attempt": attempt}
    return RunStatus.model_validate(wire | {"completionTime": "2026-01-02T00:00:00Z"})


def paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Each field below a model, as it is called on the wire."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield path
        for part in (field.annotation, *get_args(field.annotation)):
            for inner in (part, *get_args(part)):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from paths(inner, f"{path}.")


def present(value: Any, prefix: str = "") -> Iterator[str]:
    """Each field that has a value."""
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, dict):
            for name, inner in entry.items():
                yield f"{prefix}{name}"
                yield from present(inner, f"{prefix}{name}.")


def test_statuses_below_have_a_value_in_every_field() -> None:
    seen = {path for status in statuses() for path in present(status.to_wire())}
    assert sorted(set(paths(RunStatus)) - seen) == []


async def test_each_field_of_a_status_is_kept(kube: Kube, namespace: str) -> None:
    await kube.create(run_manifest(namespace))
    for status in statuses():
        stored = await kube.get(RUNS, namespace, "demo")
        await kube.replace_status(stored | {"status": status.to_wire()})
        stored = await kube.get(RUNS, namespace, "demo")
        assert stored["status"] == status.to_wire()
        assert RunStatus.model_validate(stored["status"]) == roundtrip(status)


def longest() -> dict[str, Any]:
    """A status in which everything is as long and as many as the operator lets it be, on the wire."""
    status = statuses()[-1].to_wire()
    figures = {f"eval/{'x' * 110}/{number:04d}": "0.12345678" for number in range(64)}
    checkpoint = status["latestCheckpoint"] | {"uri": f"s3://{'b' * 63}/{'k' * 700}"}
    stage = status["stages"][0] | {"message": "≥" * 1000, "results": figures, "checkpoint": checkpoint}
    pod = status["usage"]["pods"][0]
    names = [f"{'r' * 36}-s15-a999-{'h' * 12}-{number:05d}" for number in range(MAX_POD_ENTRIES)]
    return status | {
        "conditions": [c | {"message": "≥" * MAX_MESSAGE} for c in status["conditions"]],
        "stages": [stage | {"name": f"stage-{number:02d}-{'s' * 50}", "index": number} for number in range(16)],
        "checkpoints": [checkpoint] * MAX_CHECKPOINTS,
        "progress": status["progress"] | {"metrics": figures, "verdicts": dict.fromkeys(figures, 2**53)},
        "provenance": status["provenance"]
        | {"model": "m" * 2049, "versions": {f"{number}-{'p' * 60}": "v" * 256 for number in range(MAX_VERSIONS)}},
        "usage": status["usage"] | {"pods": [pod | {"name": name} for name in names]},
    }


async def test_longest_status_that_there_can_be_is_stored(kube: Kube, namespace: str) -> None:
    """etcd takes objects of a megabyte and a half, of which the list of who wrote which field is a part."""
    wire = longest()
    assert RunStatus.model_validate(wire).to_wire() == wire
    stored = await kube.create(run_manifest(namespace, stages=[TRAIN | {"name": f"s{number}"} for number in range(16)]))
    await kube.replace_status(stored | {"status": wire})
    kept = await kube.get(RUNS, namespace, "demo")
    assert kept["status"] == wire
    await kube.replace_status(kept | {"status": wire | {"ordinal": 17}})
