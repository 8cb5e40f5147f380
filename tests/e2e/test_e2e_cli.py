"""`kubectl deepcoder` on the real cluster: what needs kubelets, a live trainer and the bucket from outside."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e_world import World, wait_until

from deepcoder_demo.settings import tool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def typed(world: World, *words: str, seconds: float = 120) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        [tool("kubectl-deepcoder"), *words, "-n", world.namespace], env=world.environment | {"COLUMNS": "200"},
        capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def test_live_run_is_looked_into_stopped_and_read_back(
    world: World, start_run: Callable[..., str], tmp_path: Path
) -> None:
    name = start_run("e2e-typed", 2000)
    world.wait_for(name, "a step is trained", lambda status: (status.get("progress") or {}).get("step"), 420)

    def steps() -> str | None:
        """Lines in which the live trainer reports its steps."""
        found = typed(world, "logs", name, "--tail", "200")
        return found if "step" in found else None

    wait_until("the live driver's log tells of a step", steps, 120)
    assert typed(world, "logs", name, "samplers", "--tail", "5").strip()
    assert typed(world, "logs", name, "judge", "--tail", "5").strip()
    picture = typed(world, "status", name)
    assert "Running" in picture
    assert f"{name}-s0-a1" in picture
    bundle = tmp_path / "bundle.tar.gz"
    typed(world, "debug-bundle", name, "--file", str(bundle), seconds=300)
    with tarfile.open(bundle) as archive:
        texts = {m.name.partition("/")[2]: archive.extractfile(m).read().decode() for m in archive}  # type: ignore[union-attr]
    assert {"run.yaml", "rayjobs.yaml", "pods.yaml", "events.yaml", "operator.log"} <= set(texts)
    assert any(document.startswith("logs/") for document in texts)
    assert all(world.cluster.s3.secret_key not in text for text in texts.values())

    typed(world, "suspend", name, "--wait", "--timeout", "300", seconds=330)
    outside = ("--endpoint", world.cluster.s3.host_endpoint)
    (attempt,) = json.loads(typed(world, "logs", name, "--attempts", "-o", "json", *outside))
    assert (attempt["ordinal"], attempt["exit"]["reason"]) == (1, "Drained")
    assert "step" in typed(world, "logs", name, "--attempt", "1", *outside)
    rows = json.loads(typed(world, "samples", name, "-o", "json", "--limit", "3", *outside))
    assert all(row["response"] and row["verdict"] for row in rows)
    assert typed(world, "verify", name, "--deep", *outside).splitlines()[-1] == "whole"
