"""What the trainer does not do yet is refused before a GPU is asked for; the examples ask for none of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from plan_world import UID, Cluster, make_run
from run_manifests import EVALUATE, LONGER, TRAIN

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_operator.domain.admission import check_spec
from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.domain.policy import Policy

RECIPE = {"promptsPerStep": 8, "groupSize": 4}
EXAMPLES = [
    path
    for path in sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))
    if "apiVersion:" in path.read_text()
]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"stages": [TRAIN, LONGER | {"rope": {"type": "Dynamic", "factor": 4}}]}, "stages[long].rope"),
        ({"stages": [TRAIN, LONGER | {"placement": "Colocated"}]}, "stages[long].placement"),
        ({"recipe": RECIPE | {"maxPromptTokens": 64, "tokensPerDevice": 128}}, "recipe.tokensPerDevice"),
    ],
)
def test_a_setting_without_support_waits_unaccepted_and_makes_nothing(spec: dict[str, Any], field: str) -> None:
    cluster = Cluster(make_run(**spec))
    cluster.settle()
    accepted = find_condition(cluster.run.status.conditions, "Accepted")
    assert accepted is not None
    assert (accepted.status, accepted.reason) == ("False", "NotSupported")
    assert field in accepted.message
    assert cluster.made == []


def test_a_stages_recipe_that_fits_none_is_named_with_the_mend() -> None:
    run = make_run(recipe=RECIPE, stages=[TRAIN, LONGER | {"recipe": {"promptsPerStep": 7}}])
    problem = check_spec(run, Policy(operator_version="test"))
    assert problem is not None
    assert problem.reason == "RecipeDoesNotFit"
    assert "stages[long].recipe" in problem.message
    assert "make promptsPerStep a multiple" in problem.message


def test_a_target_that_is_no_earlier_stage_is_named_with_those_that_are() -> None:
    exam = EVALUATE | {"evaluate": EVALUATE["evaluate"] | {"targets": ["Base", "lng", EVALUATE["name"]]}}
    problem = check_spec(make_run(stages=[TRAIN, exam, LONGER]), Policy(operator_version="test"))
    assert problem is not None
    assert (problem.reason, problem.message) == (
        "UnknownTarget",
        f"stages[{EVALUATE['name']}].evaluate.targets names lng, {EVALUATE['name']}, which is not an earlier Train "
        f"stage: use Base, {TRAIN['name']}",
    )
    exam = EVALUATE | {"evaluate": EVALUATE["evaluate"] | {"targets": ["Base", TRAIN["name"], LONGER["name"]]}}
    assert check_spec(make_run(stages=[TRAIN, LONGER, exam]), Policy(operator_version="test")) is None


def test_all_of_them_are_named_at_once() -> None:
    recipe = RECIPE | {"maxPromptTokens": 64, "tokensPerDevice": 128}
    run = make_run(recipe=recipe, stages=[TRAIN, LONGER | {"placement": "Colocated"}])
    problem = check_spec(run, Policy(operator_version="test"))
    assert problem is not None
    assert "stages[long].placement" in problem.message
    assert "recipe.tokensPerDevice" in problem.message


@pytest.mark.parametrize(
    ("replicas", "gpus", "reason"),
    [
        (1, 0, "LearnersDoNotDivide"),
        (3, 0, "LearnersDoNotDivide"),
        (4, 0, None),
        (2, 3, "GPUsDoNotDivide"),
        (1, 4, None),
    ],
)
def test_learners_divide_into_groups_that_share_a_sequence(replicas: int, gpus: int, reason: str | None) -> None:
    container = {"name": "ray-worker", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}}
    learners = {"replicas": replicas, "template": {"spec": {"containers": [container]}}}
    stage = TRAIN | {"resources": {"learners": learners}}
    run = make_run(recipe=RECIPE | {"sequenceParallel": 2}, stages=[stage])
    problem = check_spec(run, Policy(operator_version="test"))
    assert (problem and problem.reason) == reason
    assert problem is None or "recipe.sequenceParallel 2: change either" in problem.message


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_asks_for_nothing_that_is_refused(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        if document and document["kind"] == "DeepCoderRun":
            document["metadata"] |= {"uid": UID, "generation": 1, "resourceVersion": "1"}
            run = DeepCoderRun.model_validate(document)
            assert check_spec(run, Policy(operator_version="test", trainer_image="trainer:1")) is None
