"""What the types refuse in a spec, the API server refuses first: the operator cannot follow a run that it cannot read.

The types' checks of several fields at once are not in the schema by themselves; each needs a CEL rule or a list's kind.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError
from run_manifests import EVALUATE, TRAIN, run_manifest

from deepcoder_contracts.api.run_spec import RunSpec
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube

Change = dict[str, Any]


def curated(**changes: Any) -> Change:
    """A run that makes its own set."""
    return {"dataset": {"curation": {"inputs": [{"name": "a", "uri": "/a"}]} | changes}}


def windowed(**window: str) -> Change:
    """A run that evaluates on the problems of a period."""
    return {"stages": [EVALUATE | {"evaluate": {"datasets": [{"name": "lcb", "uri": "/lcb"} | window]}}]}


def gated(*metrics: str) -> Change:
    """A run whose stage has conditions on metrics."""
    return {"stages": [TRAIN | {"promoteWhen": {"all": [{"metric": m, "op": "Ge", "value": 1} for m in metrics]}}]}


TWICE = [{"name": "a", "uri": "/a"}, {"name": "a", "uri": "/b"}]
REFUSED: dict[str, list[tuple[Change, str]]] = {
    "Recipe._fits_together": [
        ({"recipe": {"order": "Window", "maxOffPolicy": 0}}, "set maxOffPolicy: 1, or order: Strict"),
        ({"recipe": {"deterministic": True, "order": "Window"}}, "set order: Strict, or deterministic: false"),
        ({"recipe": {"deterministic": True, "refill": True}}, "set refill: false, or deterministic: false"),
        ({"recipe": {"promptsPerStep": 7}}, "make promptsPerStep a multiple of optimizerSteps"),
    ],
    "DatasetSource._is_one_of_two": [
        (curated() | {"dataset": curated()["dataset"] | {"uri": "/x"}}, "give exactly one of dataset.uri"),
        (curated() | {"dataset": curated()["dataset"] | {"sha256": "0" * 64}}, "dataset.sha256 is for dataset.uri"),
    ],
    "CurationSpec._fits_together": [
        (curated(inputs=TWICE), "spec.dataset.curation.inputs[1]: Duplicate value"),
        (curated(against=TWICE), "spec.dataset.curation.against[1]: Duplicate value"),
        (curated(filters={"minPassRate": 0.5}), "set curation.passRates"),
    ],
    "CurationFilters._has_a_window": [
        (curated(filters={"since": "2025-01-01", "until": "2025-01-01"}), "set until to a later date"),
        (curated(filters={"minPassRate": 0.5, "maxPassRate": 0.5}, passRates="/p"), "lower it"),
    ],
    "EvaluationDataset._is_a_window": [
        (windowed(since="2025-02-30"), "evaluate.datasets[0].since"),
        (windowed(until="2025-13-01"), "evaluate.datasets[0].until"),
        (windowed(since="0000-01-01"), "set them to later dates"),
        (windowed(since="2025-02-02", until="2025-02-01"), "set until to a later date"),
        (windowed(since="2025-02-01", until="2025-02-01"), "set until to a later date"),
    ],
    "PromoteWhen._one_condition_a_metric": [
        (gated("reward_mean", "reward_mean"), "promoteWhen.all[1]: Duplicate value"),
    ],
}
"""For each check of a type, what it refuses, and how the API server says so."""

CASES = [case for cases in REFUSED.values() for case in cases]


def models(annotation: Any, seen: set[type[BaseModel]]) -> None:
    """Collect the types that are reachable from one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in seen:
        seen.add(annotation)
        for field in annotation.model_fields.values():
            models(field.annotation, seen)
    for inner in get_args(annotation):
        models(inner, seen)


def checks() -> Iterator[tuple[str, Any]]:
    """The checks of all types of a spec, by name."""
    seen: set[type[BaseModel]] = set()
    models(RunSpec, seen)
    for model in seen:
        decorators = model.__pydantic_decorators__
        assert not decorators.field_validators, f"{model}: see that the schema refuses the same, and name it here"
        for check in decorators.model_validators.values():
            yield check.func.__qualname__, check.func


def test_each_check_of_the_types_has_cases_here() -> None:
    found = dict(checks())
    assert {*found} == {*REFUSED}
    for name, check in found.items():
        assert len(REFUSED[name]) >= inspect.getsource(check).count("raise ValueError"), name


@pytest.mark.apiserver
async def test_the_api_server_refuses_a_year_that_no_date_can_have(kube: Kube, kept_namespace: str) -> None:
    change = curated(filters={"until": "0000-12-31"})
    with pytest.raises(ValidationError):
        RunSpec.model_validate(run_manifest("ml", **change)["spec"])
    with pytest.raises(errors.Invalid, match="set them to later dates"):
        await kube.create(run_manifest(kept_namespace, **change))


@pytest.mark.parametrize(("change", "_"), CASES)
def test_the_types_refuse_each_case(change: Change, _: str) -> None:
    with pytest.raises(ValidationError, match="Value error"):
        RunSpec.model_validate(run_manifest("ml", **change)["spec"])


@pytest.mark.apiserver
@pytest.mark.parametrize(("change", "message"), CASES)
async def test_the_api_server_refuses_what_the_types_do(
    kube: Kube, kept_namespace: str, change: Change, message: str
) -> None:
    with pytest.raises(errors.Invalid) as refusal:
        await kube.create(run_manifest(kept_namespace, **change))
    assert message in str(refusal.value)


@pytest.mark.apiserver
async def test_the_api_server_takes_a_leap_day_and_an_open_period(kube: Kube, kept_namespace: str) -> None:
    for name, window in (("leap", {"since": "2024-02-29", "until": "2024-03-01"}), ("open", {"until": "2024-02-29"})):
        await kube.create(run_manifest(kept_namespace, name, **windowed(**window)))
