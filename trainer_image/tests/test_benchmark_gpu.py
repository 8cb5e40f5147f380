"""The GPU benchmark runs end to end with toy sizes on a CPU, and says what it needs where there is no card."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks/gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SOURCE, *arguments], capture_output=True, text=True, timeout=240)


def test_every_part_runs_with_toy_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "gpu.md"
    monkeypatch.syspath_prepend(str(SOURCE.parent))
    monkeypatch.setattr(sys, "argv", [str(SOURCE), "--tiny", "--page", str(page)])
    with pytest.raises(SystemExit) as ended:  # here, where torch is loaded, which takes as long as all parts
        runpy.run_path(str(SOURCE), run_name="__main__")
    assert ended.value.code == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["device"] == "cpu"
    assert figures["head_time_ratio"] > 0
    assert all(figures[name] > 0 for name in ("mfu_1_5b_16k", "mfu_1_5b_32k", "mfu_slice_14b", "offload_time_ratio"))
    assert (figures["fa3"] is None) == bool(figures["fa3_missing"])
    assert figures["unmet"] == []
    assert "these figures mean nothing" in page.read_text()


def test_without_a_card_it_says_what_it_needs() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a CUDA device")
    done = run()
    assert done.returncode == 64
    assert "torch sees no CUDA device" in done.stderr
    assert "--tiny" in done.stderr


def test_an_unknown_part_is_refused_by_name() -> None:
    done = run("--parts", "head,tail")
    assert done.returncode == 64
    assert "--parts names tail: use some of head, update-1.5b, slice-14b, offload" in done.stderr


def test_missed_targets_are_named() -> None:
    sys.path.insert(0, str(SOURCE.parent))
    try:
        import gpu
    finally:
        sys.path.remove(str(SOURCE.parent))
    met = {"head_memory_ratio": 30.0, "head_time_ratio": 1.5, "mfu_1_5b_16k": 0.31, "fa3": None}
    assert gpu.unmet(met) == []
    missed = met | {"head_time_ratio": 2.1, "mfu_1_5b_32k": 0.2, "fa3": {"mfu_slice_14b": 0.4}}
    assert gpu.unmet(missed) == ["mfu_1_5b_32k", "fa3.mfu_slice_14b", "head_time_ratio"]
