"""SandboxPool at a real API server: defaults, refusals that say how to mend them, scale."""

from __future__ import annotations

from typing import Any

import pytest

from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import POOLS

pytestmark = pytest.mark.apiserver


@pytest.fixture
def namespace(kept_namespace: str) -> str:
    """No operator is there, and nothing but runs and pools is made."""
    return kept_namespace


def pool(namespace: str, name: str = "judges", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "deepcoder.dev/v1alpha1",
        "kind": "SandboxPool",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


async def test_defaults_are_filled_in(kube: Kube, namespace: str) -> None:
    spec = (await kube.create(pool(namespace)))["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"], spec["slotsPerPod"]) == (1, 10, 2)
    assert spec["scaling"] == {
        "mode": "QueueDepth",
        "targetQueuePerSlot": 1,
        "targetWaitSeconds": 30,
        "stabilizationSeconds": 120,
    }
    assert spec["isolation"] == {"minimumTier": "Landlock", "egress": "DenyAll"}


async def test_template_keeps_fields_that_we_do_not_know(kube: Kube, namespace: str) -> None:
    template = {"spec": {"nodeSelector": {"a": "b"}, "someFutureField": {"x": [1, 2]}}}
    assert (await kube.create(pool(namespace, template=template)))["spec"]["template"] == template


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("judges", {"minReplicas": 5, "maxReplicas": 2}, "raise maxReplicas or lower minReplicas"),
        ("judges", {"maxReplicas": 0}, "spec.maxReplicas"),
        ("judges", {"slotsPerPod": 0}, "spec.slotsPerPod"),
        ("judges", {"scaling": {"mode": "Magic"}}, 'supported values: "QueueDepth", "External"'),
        ("judges", {"scaling": {"targetWaitSeconds": 0}}, "spec.scaling.targetWaitSeconds"),
        ("judges", {"isolation": {"minimumTier": "None"}}, "spec.isolation.minimumTier"),
        ("judges", {"recycle": {"maxAgeSeconds": 1}}, "spec.recycle.maxAgeSeconds"),
        ("judges", {"replicas": "two"}, "spec.replicas"),
        ("j" * 47, {}, "shorten it"),
        ("my.judges", {}, "starts with a letter"),
        ("1judges", {}, "starts with a letter"),
    ],
)
async def test_bad_pool_is_refused_with_the_field_or_the_mend(
    kube: Kube, namespace: str, name: str, spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(errors.Invalid) as refusal:
        await kube.create(pool(namespace, name, **spec))
    assert message in str(refusal.value)


async def test_scale_subresource_writes_spec_replicas(kube: Kube, namespace: str) -> None:
    await kube.create(pool(namespace, scaling={"mode": "External"}))
    scale = await kube.patch(POOLS, namespace, "judges", {"spec": {"replicas": 7}}, "scale")
    assert scale["kind"] == "Scale"
    assert (await kube.get(POOLS, namespace, "judges"))["spec"]["replicas"] == 7
