"""Curation's benchmark, small: its sets are what it says, and its last line has the figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import curate


@pytest.mark.early
def test_the_last_line_is_one_object_with_the_figures(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command = [sys.executable, curate.__file__, "--problems", "400", "--programs", "0", "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (1 if figures["unmet"] else 0), done.stderr
    assert figures["problems"] == 400
    dropped = figures["long_prompt"] + figures["contaminated"] + figures["near_duplicate"]
    assert figures["kept"] + dropped == 400
    assert figures["prepare_seconds"] > 0
    assert 50 < figures["prepare_mb"] < 2048
    assert figures["judging_ratio"] is None
    assert "400 problems × 15 tests" in page.read_text()
