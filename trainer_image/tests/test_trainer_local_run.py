"""A whole run by hand, as a researcher starts it: real vLLM, torch, Ray and judge on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.manifest import Manifest
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.samples import read_samples

pytestmark = [pytest.mark.vllm, pytest.mark.e2e, pytest.mark.timeout(1200)]

STEPS = 4


def config(tmp_path: Path, model: Path, store: str) -> Path:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        "".join(
            json.dumps({"id": f"p{i}", "prompt": f"say {i}\n", "tests": [{"input": "", "output": f"{i}\n"}]}) + "\n"
            for i in range(7)
        )
    )
    path = tmp_path / f"{store}.yaml"
    document = {
        "kind": "LocalRun",
        "name": store,
        "model": {"uri": str(model)},
        "dataset": {"uri": str(problems)},
        "recipe": {
            "promptsPerStep": 4,
            "groupSize": 4,
            "learningRate": 1e-3,
            "temperature": 1.0,
            "maxPromptTokens": 16,
            "precision": "Float32",
            "deterministic": True,
            # Any response is as good as its length here: the tiny model writes no programs, and must have something
            # to learn from for weights to differ between runs that were not the same.
            "reward": "trainer_test_reward:evenness",
        },
        "stages": [
            {"name": "short", "type": "Train", "contextTokens": 12, "maxSteps": STEPS},
        ],
        "storage": {"uri": f"file://{tmp_path}/{store}", "everySteps": 1},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def start(tmp_path: Path, path: Path) -> subprocess.Popen[bytes]:
    (tmp_path / "trainer_test_reward.py").write_text(
        "def evenness(problem, response):\n    return float(len(response) % 2 == 0)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-m", "deepcoder_trainer", "run", "--config", str(path)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=(tmp_path / f"{path.stem}.log").open("ab"),
        start_new_session=True,
    )


def finish(tmp_path: Path, path: Path) -> None:
    process = start(tmp_path, path)
    assert process.wait(600) == 0, (tmp_path / f"{path.stem}.log").read_text()[-4000:]


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def metrics(store: Path) -> dict[int, dict[str, float]]:
    """Step to its metrics, over all attempts; a step that was done twice must come out the same."""
    found: dict[int, dict[str, float]] = {}
    for path in sorted(store.glob("short/attempts/*/metrics.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            machine = ("_seconds", "seconds_mean", "memory_peak_bytes", "mfu_ratio")
            values = {k: v for k, v in row["metrics"].items() if not k.endswith(machine)}
            assert found.setdefault(row["step"], values) == values
    return found


def test_a_run_killed_with_9_and_run_again_ends_with_the_same_bits(tmp_path: Path, coder_model: Path) -> None:
    whole = config(tmp_path, coder_model, "whole")
    finish(tmp_path, whole)

    killed = config(tmp_path, coder_model, "killed")
    process = start(tmp_path, killed)
    wait_for(tmp_path / "killed/short/step-000002.a001/MANIFEST.json", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finish(tmp_path, killed)

    def weights(store: str) -> bytes:
        [export] = (tmp_path / store).glob(f"short/export/step-{STEPS:06d}.a*/model.safetensors")
        return export.read_bytes()

    assert weights("killed") == weights("whole")
    assert metrics(tmp_path / "killed")[STEPS] == metrics(tmp_path / "whole")[STEPS]

    store = tmp_path / "killed"
    links = list(walk_chain(f"file://{store}/short/export/step-{STEPS:06d}.a002", deep=True))
    assert [p for link in links for p in link.problems] == []
    assert [link.manifest.step for link in links if link.manifest] == [STEPS, STEPS, 3, 2, 1][: len(links)]
    final = Manifest.from_json((store / f"short/step-{STEPS:06d}.a002/MANIFEST.json").read_bytes())
    assert final.final
    assert ExitRecord.from_json((store / "short/attempts/002/exit.json").read_bytes()).reason == "Completed"
    for step in range(1, STEPS + 1):
        rows = read_samples(store / f"short/samples/step-{step:06d}.parquet")
        assert len(rows) == 16


def test_sigterm_saves_and_exits_75_and_the_next_run_goes_on(tmp_path: Path, coder_model: Path) -> None:
    path = config(tmp_path, coder_model, "drained")
    text = path.read_text().replace(f"maxSteps: {STEPS}", "maxSteps: 100000").replace("everySteps: 1", "everySteps: 50")
    path.write_text(text)
    process = start(tmp_path, path)
    log = tmp_path / "drained.log"
    deadline = time.monotonic() + 300
    while " short 2/" not in log.read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None, log.read_text()[-4000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75
    record = ExitRecord.from_json((tmp_path / "drained/short/attempts/001/exit.json").read_bytes())
    assert (record.code, record.reason) == (75, "Drained")
    assert record.step >= 2
    [manifest] = (tmp_path / "drained/short").glob("step-*.a001/MANIFEST.json")
    assert Manifest.from_json(manifest.read_bytes()).step == record.step
