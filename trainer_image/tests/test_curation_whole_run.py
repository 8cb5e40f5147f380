"""Curation with everything real: a whole run that makes its own set and is killed at it, and a model's pass rates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from curation_world import write_jsonl
from real_runs import NUMBERS, RealRun, make_model

from deepcoder_contracts.curation import CurationManifest
from deepcoder_contracts.layout import MANIFEST, parse_checkpoint_dir
from deepcoder_contracts.manifest import Manifest
from deepcoder_trainer.checkpoint.opening import open_storage

pytestmark = [pytest.mark.long, pytest.mark.vllm, pytest.mark.timeout(1800)]


def asks(number: int, seconds: float = 0.0) -> dict[str, Any]:
    """A problem that the tiny model may solve, and an official solution that takes its time."""
    prompt = f"say {number % NUMBERS} " + " ".join(f"{word}{number}" for word in ("for", "the", "sake", "of"))
    return {
        "id": f"p{number}",
        "prompt": prompt,
        "tests": [{"input": "", "output": f"{number % NUMBERS}\n"}],
        "solution": f"import time; time.sleep({seconds}); print({number % NUMBERS})  # {number}",
    }


@pytest.mark.s3
def test_a_run_that_is_killed_while_it_curates_goes_on_and_trains_both_stages_on_what_it_made(
    tmp_path: Path, s3: Any
) -> None:
    storage = {"uri": f"s3://{s3.bucket}/{tmp_path.name}/curating", "endpoint": s3.endpoint}
    sets = write_jsonl(tmp_path / "sets" / "numbers.jsonl", [asks(n, 0.5) for n in range(24)])
    store = open_storage(storage["uri"], s3.endpoint)

    def verdicts() -> int:
        return sum(len(store.get_bytes(o.key).splitlines()) for o in store.list("curation/journal/"))

    with RealRun(tmp_path, make_model(tmp_path / "model"), storage, steps=1) as run:
        document = yaml.safe_load(run.path.read_text())
        document["dataset"] = {
            "curation": {"inputs": [{"name": "numbers", "uri": str(sets)}], "filters": {"minTests": 1}}
        }
        document["judge"] = {"workers": 2}
        [stage] = document["stages"]
        document["stages"] = [stage, stage | {"name": "longer", "contextTokens": 12}]
        run.path.write_text(yaml.safe_dump(document))
        process = run.start()
        deadline = time.monotonic() + 300
        while verdicts() < 6:
            assert process.poll() is None, run.words()
            assert time.monotonic() < deadline, "waiting for verdicts in storage"
            time.sleep(0.05)
        run.kill(process)
        known = verdicts()
        assert known < 24
        assert not [o for o in store.list("curation/") if o.key.endswith(MANIFEST)]
        run.finish(run.start())
        words = run.log.read_text()

    assert verdicts() == 24, "no program was judged twice"
    [key] = [o.key for o in store.list("curation/") if o.key.endswith(MANIFEST)]
    curation = CurationManifest.from_json(store.get_bytes(key))
    report = next(e.path for e in curation.files if e.path.endswith("report.json"))
    assert json.loads(store.get_bytes(f"curation/{curation.key}/{report}"))["judging"] == {
        "judged": 24 - known,
        "known": known,
    }
    for stage_name in ("short", "longer"):
        found = [o.key for o in store.list(f"{stage_name}/") if o.key.endswith(f"/{MANIFEST}")]
        checkpoints = [k for k in found if parse_checkpoint_dir(k.split("/")[1]) is not None]
        manifest = Manifest.from_json(store.get_bytes(checkpoints[-1]))
        assert manifest.dataset_digest == curation.dataset_digest
    assert f"curation {curation.key[:12]} was done before: 24 problems" in words


def test_pass_rates_are_sampled_from_the_model_and_decide(tmp_path: Path, scratch: Path) -> None:
    sets = write_jsonl(tmp_path / "numbers.jsonl", [asks(n) for n in range(8)])
    impossible = asks(9) | {"tests": [{"input": "", "output": "no token says this\n"}]}
    impossible["solution"] = "print('no token says this')"
    hard = write_jsonl(tmp_path / "hard.jsonl", [impossible])
    model = make_model(tmp_path / "model")
    output = tmp_path / "out"
    command = [sys.executable, "-m", "deepcoder_trainer", "curate", f"numbers={sets}", f"hard={hard}"]
    command += ["--model", str(model), "--samples", "16", "--max-length", "8", "--temperature", "1", "--float32"]
    command += ["--min-tests", "1", "--max-prompt-tokens", "16", "--output-dir", str(output)]
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(scratch)}, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((output / "report.json").read_text())
    assert report["dropped"]["jsonl"]["pass_rate"] >= 1
    assert report["sampled"] | {"sampled": 9 * 16, "known": 0, "samples": 16} == report["sampled"]
    kept = [json.loads(line) for line in (output / "problems.jsonl").read_text().splitlines()]
    assert kept, "some it solves now and then"
    assert all(0 < row["metadata"]["pass_rate"] < 1 for row in kept)
    assert "p9" not in {row["id"] for row in kept}
    assert len((output / "state" / "sampled.jsonl").read_text().splitlines()) == 9 * 16
    assert "16 responses per problem of at most 8 tokens" in (output / "report.md").read_text()
