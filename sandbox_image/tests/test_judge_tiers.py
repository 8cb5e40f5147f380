"""Who gets which tier: root has its namespaces from the machine, everybody else from a user namespace of their own."""

import os
import shutil
import subprocess
import sys
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


HOST_USERS = """
from pathlib import Path
from deepcoder_contracts.judge import Tier
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteProcess
for _ in range(2):
    zygote = ZygoteProcess(ZygoteConfig(tier=Tier.NAMESPACES))
    inside = Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children").read_text().split()[0]
    first, begin, count = map(int, Path(f"/proc/{inside}/uid_map").read_text().split())
    print(zygote.pid, *range(begin, begin + count))
"""


@pytest.mark.root
def test_judges_whose_pids_are_alike_share_no_user_of_the_host():
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, to give each judge pids of its own")
    own_pids = ["unshare", "--pid", "--fork", "--mount-proc"]
    judges = [
        subprocess.run([*own_pids, sys.executable, "-c", HOST_USERS], capture_output=True, text=True, timeout=60)
        for _ in range(2)
    ]
    assert [judge.returncode for judge in judges] == [0, 0], judges
    zygotes = [list(map(int, line.split())) for judge in judges for line in judge.stdout.splitlines()]
    users = [user for _, *users in zygotes for user in users]
    assert [zygote[0] for zygote in zygotes[:2]] == [zygote[0] for zygote in zygotes[2:]], "their pids are alike"
    assert len(set(users)) == len(users) == 2 * len(zygotes)
