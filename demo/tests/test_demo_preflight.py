"""What keeps the demo from its end is said before anything is installed, by a Python that has no packages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepcoder_demo.settings import REPOSITORY

CHECK = [str(REPOSITORY / "scripts/plain-python.sh"), "-S", "-m", "deepcoder_demo.preflight"]


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has a Python, a shell and nothing else, and whose cache is empty."""
    programs = tmp_path / "bin"
    programs.mkdir()
    base = Path(sys.base_prefix) / "bin" / "python3.11"
    for name, origin in (("python3.11", base), ("bash", shutil.which("bash")), ("dirname", shutil.which("dirname"))):
        (programs / name).symlink_to(str(origin))
    kept = {name: value for name, value in os.environ.items() if name not in ("KUBECONFIG", "PYTHON", "PYTHONPATH")}
    return kept | {"PATH": str(programs), "DEEPCODER_CACHE": str(tmp_path / "cache")}


def checked(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(CHECK, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_python_that_is_named_is_the_one_that_runs(tmp_path: Path) -> None:
    """Whoever sets PYTHON means it, also where a distribution's would be preferred."""
    own = tmp_path / "python-of-mine"
    own.write_text(f'#!/bin/sh\nMINE=1 exec {sys.executable} "$@"\n')
    own.chmod(0o755)
    asked = [CHECK[0], "-c", "import os; print(os.environ['MINE'])"]
    done = subprocess.run(asked, env=os.environ | {"PYTHON": str(own)}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_machine_that_lacks_everything_is_told_so_at_once(bare: dict[str, str], tmp_path: Path) -> None:
    done = checked(bare)
    assert done.returncode == 64
    assert "Go is not installed. Install Go" in done.stderr
    assert "apt-get install" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "cache").exists()


def test_a_foreign_cluster_is_checked_instead_of_the_machine(bare: dict[str, str]) -> None:
    done = checked(bare | {"KUBECONFIG": "/nowhere"})
    assert done.returncode == 64
    assert "needs kubectl and helm on PATH" in done.stderr
    assert "Go" not in done.stderr


def test_no_python_of_the_version_needed_is_said_with_the_mend(bare: dict[str, str]) -> None:
    done = checked(bare | {"PYTHON": "/bin/false"})
    assert done.returncode == 64
    assert "Python 3.11 is needed" in done.stderr


def test_make_demo_checks_before_it_sets_up() -> None:
    apart = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    planned = subprocess.run(
        ["make", "-n", "demo"], cwd=REPOSITORY, env=apart, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert [line.split()[-1] for line in planned.stdout.splitlines()] == [
        "deepcoder_demo.preflight", "scripts/setup.sh", "deepcoder_demo",
    ]  # fmt: skip
