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
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import whole_runs

class Popen(whole_runs.subprocess.Popen):
    def wait(self, timeout=None):
        while not log.read_text().endswith("\\n") and self.poll() is None:  # its time begins when the daemon is there
            time.sleep(0.01)
        return super().wait(timeout)

log = Path(sys.argv[4])
whole_runs.subprocess.Popen = Popen
print(whole_runs.run_whole([sys.executable, "-c", sys.argv[2], sys.argv[3]], log, float(sys.argv[5])))
"""


@pytest.mark.parametrize(
    ("seconds", "limit", "status"), [("300", "0.1", "None"), ("0", "60", "0")], ids=["took too long", "ended"]
)
def test_nothing_outlives_a_run(seconds: str, limit: str, status: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = subprocess.run(  # it ends all of its descendants: not in the process of the tests
        [sys.executable, "-c", RUNS_IT, str(SOURCE.parent), STARTS_A_DAEMON, seconds, str(log), limit],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == status, done.stderr
    assert not psutil.pid_exists(int(log.read_text()))
