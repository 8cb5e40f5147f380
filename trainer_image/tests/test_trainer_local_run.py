"""A whole run by hand that is asked to stop: it saves and leaves, and says so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from real_runs import RealRun, make_model

from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.manifest import Manifest

pytestmark = [pytest.mark.vllm, pytest.mark.e2e, pytest.mark.timeout(1200)]


def test_sigterm_saves_and_exits_75(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    storage = {"uri": f"file://{tmp_path}/drained", "everySteps": 50}
    with RealRun(tmp_path, model, storage, steps=100_000) as run:
        process = run.start()
        deadline = time.monotonic() + 300
        while " short 2/" not in run.log.read_text():
            assert time.monotonic() < deadline
            if process.poll() is not None:
                process = run.start_again(process)
            time.sleep(0.05)
        process.terminate()
        assert process.wait(120) == 75, run.words()
    [*_, newest] = sorted((tmp_path / "drained/short/attempts").glob("*/exit.json"))
    record = ExitRecord.from_json(newest.read_bytes())
    assert (record.code, record.reason) == (75, "Drained")
    assert record.step >= 2
    [manifest] = (tmp_path / "drained/short").glob("step-*/MANIFEST.json")
    assert Manifest.from_json(manifest.read_bytes()).step == record.step
