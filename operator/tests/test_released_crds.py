"""An upgrade of the CRDs under objects that the release before has stored: they stay valid, their status writable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from released_crds import before_the_upgrade, current, released
from run_manifests import EVALUATE, LONGER, TRAIN, run_manifest

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_operator.domain.admission import check_spec
from deepcoder_operator.domain.policy import Policy
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import POOLS, RUNS

LOWEST = ("minimum", "minLength", "minItems", "minProperties")
HIGHEST = ("maximum", "maxLength", "maxItems", "maxProperties")
WIDER = (".promoteWhen.all[].metric",)
"""Where a pattern is another, and matches all that the older one did."""
GATE = {"all": [{"metric": "reward_mean", "op": "Ge", "value": 0.5}]}


def narrower(old: dict[str, Any], new: dict[str, Any] | None, path: str) -> Iterator[str]:
    """Where the newer schema refuses or drops what the older one takes."""
    if new is None:
        yield f"{path} is gone"
        return
    if old.get("type") != new.get("type"):
        yield f"{path} was {old.get('type')} and is {new.get('type')}"
    if "enum" in new and (missing := {*map(str, old.get("enum", ["anything"]))} - {*map(str, new["enum"])}):
        yield f"{path} takes {missing} no more"
    if "pattern" in new and old.get("pattern") != new["pattern"] and not path.endswith(WIDER):
        yield f"{path} has another pattern: see that it matches all that the older one did, and name it in WIDER"
    yield from (f"{path}.{b} was raised" for b in LOWEST if new.get(b, -1e99) > old.get(b, 0 if "min" in b else -1e99))
    yield from (f"{path}.{b} was lowered" for b in HIGHEST if new.get(b, 1e99) < old.get(b, 1e99))
    if required := {*new.get("required", ())} - {*old.get("required", ())}:
        yield f"{path} now requires {required}"
    for name, child in old.get("properties", {}).items():
        yield from narrower(child, new.get("properties", {}).get(name), f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if isinstance(old.get(inner), dict):
            yield from narrower(old[inner], new.get(inner), f"{path}[]")


@pytest.mark.parametrize("name", released())
def test_what_the_release_before_took_is_taken(name: str) -> None:
    old, new = (crds[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for crds in (released(), current()))
    assert list(narrower(old, new, name)) == []


def test_a_curation_that_an_earlier_release_refused_is_refused_still() -> None:
    stored = run_manifest("team", dataset={"uri": "/data/train.jsonl", "curate": True})
    stored["metadata"] |= {"uid": "0f0e0d0c-0000-4000-8000-000000000001", "generation": 1, "resourceVersion": "1"}
    stored["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    problem = check_spec(DeepCoderRun.model_validate(stored), Policy(operator_version="test"))
    assert problem is not None
    assert "say" in problem.message
    assert "dataset.curation" in problem.message


@pytest.mark.apiserver
async def test_a_stored_run_is_read_and_its_status_written_after_the_upgrade(kube: Kube, namespace: str) -> None:
    async with before_the_upgrade(kube, namespace):
        manifest = run_manifest(namespace, stages=[TRAIN | {"promoteWhen": GATE}, LONGER, EVALUATE])
        stored = await kube.create(manifest)
        assert stored["spec"]["dataset"]["curate"] is False
    run = DeepCoderRun.model_validate(await kube.get(RUNS, namespace, "demo"))
    assert check_spec(run, Policy(operator_version="test")) is None
    written = await kube.replace_status(await kube.get(RUNS, namespace, "demo") | {"status": {"phase": "Pending"}})
    assert written["status"]["phase"] == "Pending"
    edit = {"spec": {"suspend": True}}
    assert (await kube.patch(RUNS, namespace, "demo", edit))["spec"]["dataset"]["curate"] is False


@pytest.mark.apiserver
async def test_names_that_the_release_before_took_stay_with_the_objects_that_have_them(
    kube: Kube, namespace: str
) -> None:
    """Such a pool never had a judge, but its status says why, and whoever deletes it may wait for its finalizers."""
    named = {"name": "1judges", "namespace": namespace}
    async with before_the_upgrade(kube, namespace):
        pool = {"apiVersion": "deepcoder.dev/v1alpha1", "kind": "SandboxPool", "metadata": named, "spec": {}}
        await kube.create(pool)
        await kube.create(run_manifest(namespace, sandbox={"poolRef": {"name": "1judges"}}))
    for resource, name, status in ((POOLS, "1judges", {"replicas": 1}), (RUNS, "demo", {"phase": "Pending"})):
        assert (await kube.patch(resource, namespace, name, {"status": status}, "status"))["status"] == status
        for finalizers in (["example.com/wait"], []):
            await kube.patch(resource, namespace, name, {"metadata": {"finalizers": finalizers}})
