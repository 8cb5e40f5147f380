"""A benchmark that trains ends all that it started, daemons included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks/whole_runs.py"
# A daemon whose parent has ended, in a session of its own, as Ray's may be.
STARTS_A_DAEMON = """
import subprocess, sys, time
code = "import subprocess; print(subprocess.Popen(['sleep', '300'], start_new_session=True).pid)"
subprocess.run([sys.executable, '-c', code], check=True)
time.sleep(float(sys.argv[1]))
"""
RUNS_IT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import whole_runs
whole_runs.STOP_SECONDS = 5.0
print(whole_runs.run_whole([sys.executable, "-c", sys.argv[2], sys.argv[3]], Path(sys.argv[4]), 3.0))
"""


@pytest.mark.parametrize(("seconds", "status"), [("300", "None"), ("0", "0")], ids=["took too long", "ended"])
def test_nothing_outlives_a_run(seconds: str, status: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = subprocess.run(  # it ends all of its descendants: not in the process of the tests
        [sys.executable, "-c", RUNS_IT, str(SOURCE.parent), STARTS_A_DAEMON, seconds, str(log)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == status, done.stderr
    assert not psutil.pid_exists(int(log.read_text()))
