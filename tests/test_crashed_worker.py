"""Of a worker of the tests that ends, it is told how, and what Ray said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENDS = """
import os, pathlib, tempfile

def test_ends():
    logs = pathlib.Path(tempfile.gettempdir(), "ray", "session_1", "logs")
    logs.mkdir(parents=True)
    (logs / f"python-core-driver-0100_{os.getpid()}.log").write_text("long ago\\n" * 20 + "raylet is dead\\n" * 9)
    (logs / "python-core-driver-0100_1.log").write_text("another's\\n")
    os._exit(7)
"""


def test_its_status_and_the_end_of_its_log_are_told(tmp_path: Path) -> None:
    (tmp_path / "test_ends.py").write_text(ENDS)
    (tmp_path / "conftest.py").symlink_to(Path(__file__).resolve().parents[1] / "conftest.py")
    # Where CI or BUILD_NUMBER is set, pytest tells a failure's whole message once more in its summary.
    environment = {
        k: os.environ[k] for k in os.environ if not k.startswith("PYTEST") and k not in ("CI", "BUILD_NUMBER")
    }
    command = [sys.executable, "-m", "pytest", "-n", "1", "--max-worker-restart", "0", "test_ends.py"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1, ended.stdout
    assert "crashed while running 'test_ends.py::test_ends', with status 7\n" in ended.stdout
    assert ended.stdout.count("raylet is dead") == 9
    assert ended.stdout.count("long ago") == 1
    assert "another's" not in ended.stdout
