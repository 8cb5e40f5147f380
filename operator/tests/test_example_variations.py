"""Each variation is taken by a real API server, and opens by saying what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcoder_contracts.api.run_spec import RunSpec
from deepcoder_operator.kube.client import Kube

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "variations"
VARIATIONS = sorted(FOLDER.glob("*.yaml"))
WANTED = {"evaluation-only", "kueue", "own-dataset", "own-reward", "shared-pool", "spot"}


@pytest.fixture
def namespace(kept_namespace: str) -> str:
    """No operator is there, and nothing but runs and pools is made."""
    return kept_namespace


def documents(path: Path) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


def test_there_is_one_for_each_thing_that_users_ask_for() -> None:
    assert {path.stem for path in VARIATIONS} == WANTED


@pytest.mark.parametrize("path", VARIATIONS, ids=lambda p: p.stem)
def test_it_says_what_it_is_for(path: Path) -> None:
    head = path.read_text().partition("apiVersion:")[0].splitlines()
    assert len(head) >= 3
    assert all(line.startswith("#") for line in head)


@pytest.mark.apiserver
@pytest.mark.parametrize("path", VARIATIONS, ids=lambda p: p.stem)
async def test_the_api_server_takes_it(kube: Kube, namespace: str, path: Path) -> None:
    ours = [d for d in documents(path) if d["apiVersion"].startswith("deepcoder.dev/")]
    assert ours
    for document in ours:
        document["metadata"]["namespace"] = namespace
        made = await kube.create(document)
        if document["kind"] == "DeepCoderRun":
            RunSpec.model_validate(made["spec"])
