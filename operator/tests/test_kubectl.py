"""What a user types, with a real kubectl: the columns of `get`, `explain`, and the commands that are printed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from plan_world import running
from run_manifests import LONGER, TRAIN, run_manifest

from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import RUNS
from devcluster import doctor
from devcluster.artifacts import Artifacts
from devcluster.config import cache_root

pytestmark = pytest.mark.apiserver


@pytest.fixture(scope="module")
def shell(kubeconfig: Path) -> dict[str, str]:
    """An environment in which `kubectl` talks to the API server."""
    kubectl = Artifacts(cache_root(), doctor.go_version()).kubectl
    if not kubectl.exists():
        pytest.skip("kubectl has not been built: run `python -m devcluster build`")
    return {
        "PATH": f"{kubectl.parent}:{os.environ['PATH']}",
        "KUBECONFIG": str(kubeconfig),
        "HOME": str(kubeconfig.parent),
    }


def typed(command: str, environment: dict[str, str]) -> str:
    answer = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize("approved", [None, ["other"]])
async def test_printed_command_releases_a_held_stage(
    kube: Kube, namespace: str, shell: dict[str, str], approved: list[str] | None
) -> None:
    stages = [TRAIN | {"hold": True}, LONGER | {"name": "other"}]
    cluster = running(stages=stages, approvedStages=approved)
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.settle()
    held = find_condition(cluster.run.status.conditions, "Progressing")
    assert held is not None
    assert held.reason == "Held"
    command = held.message.partition("release it with ")[2].replace("-n ml", f"-n {namespace}")
    await kube.create(run_manifest(namespace, stages=stages, approvedStages=approved))
    typed(command, shell)
    stored = await kube.get(RUNS, namespace, "demo")
    assert stored["spec"]["approvedStages"] == [*(approved or []), "short"]


async def test_get_shows_the_columns_that_are_promised(kube: Kube, namespace: str, shell: dict[str, str]) -> None:
    await kube.create(run_manifest(namespace))
    head = typed(f"kubectl -n {namespace} get dcr", shell).splitlines()[0].split()
    assert head == ["NAME", "PHASE", "STAGE", "CONTEXT", "STEP", "REWARD", "GPUS", "ATTEMPT", "AGE"]


@pytest.mark.parametrize(
    "field", ["spec.stages.promoteWhen", "spec.failurePolicy", "status.usage", "status.conditions"]
)
async def test_explain_tells_each_field_in_a_sentence(kube: Kube, shell: dict[str, str], field: str) -> None:
    text = typed(f"kubectl explain dcr.{field}", shell)
    fields = text.partition("FIELDS:")[2]
    told = [block for block in fields.split("\n\n") if block.strip()]
    assert told
    for block in told:
        name, *sentences = [line for line in block.splitlines() if line.strip() and "enum:" not in line]
        assert " ".join(sentences).strip().endswith((".", "…")), (name, sentences)


async def test_explain_shows_the_whole_of_both_kinds(kube: Kube, shell: dict[str, str]) -> None:
    for kind, least in (("dcr", 200), ("sbp", 40)):
        lines = typed(f"kubectl explain {kind} --recursive", shell).splitlines()
        assert len(lines) > least
        assert not [line for line in lines if "<Object>" in line and line.strip().startswith("-")]
    assert json.loads(typed("kubectl get --raw /apis/deepcoder.dev/v1alpha1", shell))["resources"]
