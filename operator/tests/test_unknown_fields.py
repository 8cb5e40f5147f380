"""Fields that the API server does not know: dropped in silence, or refused by name where that is asked for."""

from __future__ import annotations

from typing import Any

import pytest
from plan_world import START, make_run
from run_manifests import TRAIN

from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_operator.builders.rayjob import build_rayjob
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import RAYJOBS

pytestmark = pytest.mark.apiserver


def rayjob(namespace: str, **template: Any) -> dict[str, Any]:
    run = make_run(stages=[TRAIN | {"resources": {"head": {"template": {"spec": template}}}}])
    attempt = AttemptStatus(ordinal=1, stage_index=0, name="demo-s0-a1", intended_time=START)
    made = build_rayjob(run, attempt, "trainer:1", "config", s3_ca=False)
    return made | {"metadata": made["metadata"] | {"namespace": namespace}}


async def test_job_that_asks_for_what_kuberay_does_not_know_is_refused_with_each_field(
    kube: Kube, namespace: str
) -> None:
    made = rayjob(namespace, tolerationz=[])
    made["spec"]["fromTheFuture"] = {"mode": "token"}
    with pytest.raises(errors.UnknownFields) as refused:
        await kube.create(made, strict=True)
    head = "spec.rayClusterSpec.headGroupSpec.template.spec.tolerationz"
    assert sorted(refused.value.fields) == ["spec.fromTheFuture", head]
    assert await kube.find(RAYJOBS, namespace, "demo-s0-a1") is None
    created = await kube.create(made)
    assert "fromTheFuture" not in created["spec"], "and it is dropped where nobody asks"


async def test_job_that_asks_only_for_what_kuberay_knows_is_made(kube: Kube, namespace: str) -> None:
    made = rayjob(namespace)
    created = await kube.create(made, strict=True)
    assert created["spec"]["rayClusterSpec"]["authOptions"] == made["spec"]["rayClusterSpec"]["authOptions"]
