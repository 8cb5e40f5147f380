"""The page's pure scripts, each file of tests/js in a Node.js of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")
FILES = sorted(Path(__file__).with_name("js").glob("*.test.js"))
DEADLINE_SECONDS = 120


@pytest.mark.skipif(NODE is None, reason="there is no node on this machine to run the page's scripts in")
@pytest.mark.parametrize("path", FILES, ids=[path.name.removesuffix(".test.js") for path in FILES])
def test_scripts_do_what_their_tests_say(path: Path) -> None:
    ran = subprocess.run(
        [str(NODE), "--test", str(path)], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
