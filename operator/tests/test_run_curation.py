"""`dataset.curation`: what the API server and the operator take and refuse, and how it reaches the attempt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from plan_world import Cluster, make_run
from run_manifests import EVALUATE, LONGER, TRAIN, run_manifest

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.curation import Layout
from deepcoder_operator.builders.trainer_pod import _uses_hub
from deepcoder_operator.domain.admission import check_spec
from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.domain.policy import Policy
from deepcoder_operator.domain.resolve import ResolvedConfig, resolve
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import RUNS

HELD_BACK: dict[str, Any] = {"name": "held-back", "uri": "/data/held-back.jsonl"}
CURATE: dict[str, Any] = {
    "inputs": [
        {"name": "taco", "uri": "hf://likaixin/TACO-verified", "layout": "Taco"},
        {"name": "lcb", "uri": "s3://sets/lcb.jsonl", "layout": "LiveCodeBench", "sha256": "a" * 64},
    ],
    "against": [HELD_BACK],
    "filters": {"minTests": 5, "since": "2023-05-01", "until": "2024-08-01"},
}


def curated(**changes: Any) -> dict[str, Any]:
    return {"curation": {k: v for k, v in (CURATE | changes).items() if v is not None}}


@pytest.fixture
def namespace(kept_namespace: str) -> str:
    """No operator is there, and nothing but runs and pools is made."""
    return kept_namespace


@pytest.mark.apiserver
async def test_a_curation_is_taken_with_its_defaults_and_read_back(kube: Kube, namespace: str) -> None:
    stored = await kube.create(run_manifest(namespace, dataset=curated()))
    assert stored["spec"]["dataset"]["curation"]["filters"]["nearDuplicate"] == 0.8
    curate = DeepCoderRun.model_validate(stored).spec.dataset.curation  # type: ignore[union-attr]
    assert curate is not None
    assert [(s.name, s.layout) for s in curate.inputs] == [("taco", Layout.TACO), ("lcb", Layout.LIVECODEBENCH)]
    assert curate.filters.until is not None
    assert curate.filters.until.isoformat() == "2024-08-01"


@pytest.mark.apiserver
@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({}, "give exactly one of dataset.uri"),
        ({"uri": "/data/train.jsonl"} | curated(), "give exactly one of dataset.uri"),
        ({"sha256": "a" * 64} | curated(), "give each of curation.inputs its own sha256"),
        (curated(inputs=[]), "spec.dataset.curation.inputs"),
        (curated(inputs=[HELD_BACK, HELD_BACK]), "Duplicate value"),
        (curated(inputs=[HELD_BACK | {"layout": "Csv"}]), "supported values"),
        (curated(inputs=[HELD_BACK | {"uri": "http://x/y"}]), "spec.dataset.curation.inputs[0].uri"),
        (curated(filters={"since": "2024-08-01", "until": "2024-08-01"}), "set until to a later date"),
        (curated(filters={"since": "yesterday"}), "spec.dataset.curation.filters.since"),
        (curated(filters={"minPassRate": 0.9, "maxPassRate": 0.1}, passRates="/r"), "filters.maxPassRate: lower it"),
        (curated(filters={"minPassRate": 0.1}), "need pass rates: set curation.passRates"),
        (curated(filters={"minTests": 0}), "spec.dataset.curation.filters.minTests"),
        (curated(filters={"nearDuplicate": 0}), "spec.dataset.curation.filters.nearDuplicate"),
    ],
)
async def test_a_curation_that_cannot_work_is_refused_with_the_mend(
    kube: Kube, namespace: str, dataset: dict[str, Any], message: str
) -> None:
    with pytest.raises(errors.Invalid) as refusal:
        await kube.create(run_manifest(namespace, dataset=dataset))
    assert message in str(refusal.value)


@pytest.mark.apiserver
async def test_a_curation_cannot_be_edited(kube: Kube, namespace: str) -> None:
    stored = await kube.create(run_manifest(namespace, dataset=curated()))
    edit = {"spec": {"dataset": {"curation": {"filters": {"minTests": 1}}}}}
    with pytest.raises(errors.Invalid, match="dataset is immutable"):
        await kube.patch(RUNS, namespace, stored["metadata"]["name"], edit)


def test_a_set_that_a_stage_evaluates_has_to_be_kept_out_of_training() -> None:
    policy = Policy(operator_version="test")
    assert check_spec(make_run(dataset=curated(), stages=[TRAIN, LONGER, EVALUATE]), policy) is None
    cluster = Cluster(make_run(dataset=curated(against=[]), stages=[TRAIN, LONGER, EVALUATE]))
    cluster.settle()
    accepted = find_condition(cluster.run.status.conditions, "Accepted")
    assert accepted is not None
    assert (accepted.status, accepted.reason) == ("False", "EvaluationSetNotProtected")
    assert "held-back, which dataset.curation.against does not name" in accepted.message
    assert cluster.made == []


def test_a_curation_is_part_of_what_is_resolved_once() -> None:
    run = make_run(dataset=curated())
    resolved = resolve(run, None)
    again = ResolvedConfig.from_json(resolved.to_json())
    assert again == resolved
    assert again.dataset is not None
    assert again.dataset.curation == run.spec.dataset.curation  # type: ignore[union-attr]
    assert resolve(make_run(dataset=curated(filters={"minTests": 6})), None).digest != resolved.digest


def test_the_pages_example_is_one_that_is_taken() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    [block] = [b for b in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "curation:" in b]
    run = make_run(dataset=yaml.safe_load(block)["spec"]["dataset"], stages=[TRAIN])
    assert run.spec.dataset is not None
    assert run.spec.dataset.curation is not None
    assert run.spec.dataset.curation.filters.until is not None
    assert check_spec(run, Policy(operator_version="test")) is None


def test_pods_may_ask_the_hub_where_a_set_is_there() -> None:
    assert _uses_hub(make_run(dataset=curated()))
    assert not _uses_hub(make_run(dataset=curated(inputs=[HELD_BACK])))
