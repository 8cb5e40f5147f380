"""A run with all that a pod takes from it: a root that cannot be written to, rights, a home, a user with a name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from real_runs import RealRun, make_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"),
]

# With `bind` a mount of this namespace alone becomes read-only; without, the file system would for everybody.
PLACE = """
mount --make-rprivate / && mount --bind "$0" "$0" && mount -t tmpfs tmpfs /dev/shm && mount -o remount,ro,bind / &&
! touch /writable 2>&- && cd "$0" &&
exec unshare --user --map-user=54321 --map-group=54321 env --ignore-environment PATH="$PATH" HOME="$0" TMPDIR="$0" "$@"
"""


def test_a_run_needs_no_place_to_write_but_its_temporary_folder_and_no_user_that_the_machine_knows(
    tmp_path: Path,
) -> None:
    model = make_model(tmp_path / "model")
    with RealRun(tmp_path, model, {"uri": "file:///nowhere/stored", "everySteps": 1}, steps=2) as run:
        scratch = str(run.scratch)
        run.path.write_text(run.path.read_text().replace("file:///nowhere", f"file://{scratch}"))
        command = [sys.executable, "-m", "deepcoder_trainer", "run", "--config", str(run.path)]
        place = ["unshare", "--mount", "sh", "-c", PLACE, scratch]
        done = subprocess.run([*place, *command], capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        assert (run.scratch / "stored/short/export/step-000002.a001/MANIFEST.json").is_file()
