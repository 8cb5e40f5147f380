"""The examples are runs that the operator reads without complaint, and they say what the text around them says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcoder_contracts.api.run_spec import RunSpec
from deepcoder_contracts.api.sandboxpool import SandboxPoolSpec
from deepcoder_contracts.learner_memory import checkpoint_bytes
from deepcoder_contracts.model_shape import KNOWN, ModelShape, parameters
from deepcoder_contracts.sizing import pod_gpus
from deepcoder_operator.builders.pool import PoolIdentity, PoolSettings, build_pod_template
from deepcoder_operator.kube.client import Kube

DIRECTORY = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES = [path for path in sorted(DIRECTORY.glob("*.yaml")) if "apiVersion:" in path.read_text()]
"""Manifests; files for a run by hand are the trainer's to read."""


@pytest.fixture
def namespace(kept_namespace: str) -> str:
    """No operator is there, and nothing but runs and pools is made."""
    return kept_namespace


def documents(path: Path, kind: str) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d and d["kind"] == kind]


def gpus(stage: dict[str, Any], role: str) -> int:
    group = (stage.get("resources") or {}).get(role) or {}
    return int(group.get("replicas", 1)) * pod_gpus(group.get("template", {}).get("spec", {}))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_run_is_read_and_its_templates_are_accepted(path: Path) -> None:
    for run in documents(path, "DeepCoderRun"):
        spec = RunSpec.model_validate(run["spec"])
        if spec.sandbox.template is not None:
            settings = PoolSettings("sandbox", "deepcoder", {}, "deepcoder.dev/run")
            build_pod_template(PoolIdentity("ml", "judges", "uid"), spec.sandbox.template, settings)
    for pool in documents(path, "SandboxPool"):
        SandboxPoolSpec.model_validate(pool["spec"])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_judges_have_the_memory_that_their_slots_may_take(path: Path) -> None:
    for run in documents(path, "DeepCoderRun"):
        pool = RunSpec.model_validate(run["spec"]).sandbox.template
        if pool is not None:
            needed = judge_limit_mib(pool.model_copy(update={"template": {}}))
            assert judge_limit_mib(pool) >= needed, (
                "the kernel may kill the judge: raise limits.memory, or leave it out"
            )


def judge_limit_mib(pool: SandboxPoolSpec) -> int:
    """Limit of the judge's container in MiB."""
    settings = PoolSettings("sandbox", "deepcoder", {}, "deepcoder.dev/run")
    built = build_pod_template(PoolIdentity("ml", "judges", "uid"), pool, settings)
    (limit,) = (c["resources"]["limits"]["memory"] for c in built["spec"]["containers"] if c["name"] == "judge")
    return int(limit[:-2]) * {"Mi": 1, "Gi": 1024}[limit[-2:]]


def test_14b_is_the_published_recipe_on_32_gpus() -> None:
    (run,) = documents(DIRECTORY / "deepcoder-14b.yaml", "DeepCoderRun")
    stages = run["spec"]["stages"]
    assert [s["contextTokens"] for s in stages] == [16384, 32768, 65536]
    assert [s.get("maxSteps") for s in stages] == [180, 470, None]
    for stage in stages:
        assert gpus(stage, "samplers") + gpus(stage, "learners") == 32
    recipe = RunSpec.model_validate(run["spec"]).recipe
    assert (recipe.prompts_per_step, recipe.group_size, recipe.optimizer_steps) == (128, 8, 2)
    assert (recipe.clip_low, recipe.clip_high, recipe.learning_rate, recipe.temperature) == (0.2, 0.28, 1e-6, 0.6)
    assert (recipe.kl_coefficient, recipe.entropy_coefficient) == (0, 0)


def test_1_5b_fits_one_node_of_8_gpus() -> None:
    (run,) = documents(DIRECTORY / "deepcoder-1.5b.yaml", "DeepCoderRun")
    for stage in run["spec"]["stages"]:
        assert gpus(stage, "samplers") + gpus(stage, "learners") == 8


@pytest.mark.parametrize("name", ["deepcoder-14b", "deepcoder-1.5b", "deepcoder-1.5b-one-gpu"])
def test_the_weights_of_an_evaluated_model_fit_the_object_store_of_the_head(name: str) -> None:
    """It is 30 % of the container's memory, of which a head without a limit has its node's."""
    (run,) = documents(DIRECTORY / f"{name}.yaml", "DeepCoderRun")
    weights = 2 * parameters(ModelShape.of(KNOWN[run["spec"]["model"]["uri"]]))
    (stage,) = (stage for stage in run["spec"]["stages"] if stage.get("type") == "Evaluate")
    assert 0.3 * resource(stage, "head", "limits", "memory") > weights


def test_nodes_of_learners_have_room_for_the_base_model_and_a_checkpoint_of_14b() -> None:
    (run,) = documents(DIRECTORY / "deepcoder-14b.yaml", "DeepCoderRun")
    shape = ModelShape.of(KNOWN[run["spec"]["model"]["uri"]])
    for stage in run["spec"]["stages"]:
        if learners := stage["resources"].get("learners"):
            needed = 2 * parameters(shape) + checkpoint_bytes(shape) / learners["replicas"]
            assert resource(stage, "learners", "requests", "ephemeral-storage") > 1.2 * needed


def resource(stage: dict[str, Any], role: str, kind: str, name: str) -> int:
    """Bytes that the only container of a role's template asks for."""
    (container,) = stage["resources"][role]["template"]["spec"]["containers"]
    return int(container["resources"][kind][name].removesuffix("Gi")) << 30


@pytest.mark.apiserver
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
async def test_example_is_accepted_by_the_api_server(kube: Kube, namespace: str, path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        if document and document["apiVersion"].startswith("deepcoder.dev/"):
            document["metadata"]["namespace"] = namespace
            assert (await kube.create(document))["metadata"]["uid"]
