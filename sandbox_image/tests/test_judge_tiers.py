"""Who gets which tier: root has its namespaces from the machine, everybody else from a user namespace of their own."""

import os
import subprocess
from pathlib import Path

import pydantic
import pytest

import deepcoder_contracts
import deepcoder_sandbox

SYSTEM_PYTHON = "/usr/bin/python3"  # readable by everybody, as the one that runs these tests need not be
NOBODY_SPECIAL = "12345"


@pytest.mark.root
def test_user_without_rights_gets_the_namespaces_tier_where_user_namespaces_are_allowed():
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    namespaces = Path("/proc/sys/user/max_user_namespaces")
    version = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True
    )
    if version.stdout.strip() != b"True" or not int(namespaces.read_text()):
        pytest.skip(f"{SYSTEM_PYTHON} is older than 3.11, or user namespaces are switched off here")
    packages = [Path(package.__file__).parents[1] for package in (deepcoder_sandbox, deepcoder_contracts, pydantic)]
    become = ["setpriv", f"--reuid={NOBODY_SPECIAL}", f"--regid={NOBODY_SPECIAL}", "--clear-groups"]
    told = subprocess.run(
        [*become, "--inh-caps=-all", SYSTEM_PYTHON, "-m", "deepcoder_sandbox", "capacity"],
        env={"PATH": "/usr/bin:/bin", "HOME": "/", "PYTHONPATH": ":".join(map(str, packages))},
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )
    assert told.returncode == 0, told
    assert told.stdout.splitlines()[0] == "Namespaces"
    assert "NOT enforced" not in told.stdout
