"""docs/pools.md names what there is: metrics, fields, and an autoscaler's target that the API server would find."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from prometheus_client import REGISTRY, generate_latest

from deepcoder_contracts.api.base import API_VERSION
from deepcoder_contracts.api.sandboxpool import RESOURCE, SandboxPoolSpec, Scaling
from deepcoder_operator.sandbox import metrics

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "pools.md").read_text()


def test_example_for_keda_scales_a_pool_that_exists_by_metrics_that_exist() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    pool, scaled = yaml.safe_load_all(block)
    assert (pool["apiVersion"], pool["kind"]) == (API_VERSION, RESOURCE.kind)
    spec = SandboxPoolSpec.model_validate(pool["spec"])
    assert spec.scaling.mode == "External"
    assert scaled["spec"]["scaleTargetRef"] == {
        "apiVersion": API_VERSION,
        "kind": RESOURCE.kind,
        "name": pool["metadata"]["name"],
    }
    metrics.DEMAND.labels("team", "judges")
    known = set(re.findall(r"^# TYPE (\S+)", generate_latest(REGISTRY).decode(), re.MULTILINE))
    for trigger in scaled["spec"]["triggers"]:
        (name,) = re.findall(r"deepcoder_operator_\w+", trigger["metadata"]["query"])
        assert name in known
    first = scaled["spec"]["triggers"][0]["metadata"]["threshold"]
    assert float(first) == spec.slots_per_pod * (1 + spec.scaling.target_queue_per_slot)


def test_every_field_of_scaling_is_told_with_its_default() -> None:
    told = {name: float(value) for name, value in re.findall(r"`(\w+)`[^(`]*?\((\d+)\)", DOCUMENT)}
    fields = {str(field.alias): field.default for field in Scaling.model_fields.values()}
    assert f"scaling.mode: {fields.pop('mode')}` (the default)" in DOCUMENT
    assert fields == {name: told[name] for name in fields}
