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
from deepcoder_contracts.judge import Tier
from deepcoder_sandbox import attack, attack_limits, tiers
from deepcoder_sandbox.worker import namespaces
from deepcoder_sandbox.zygote_process import InForce, ZygoteConfig, ZygoteFailed, ZygoteProcess

SYSTEM_PYTHON = "/usr/bin/python3"  # readable by everybody, as the one that runs these tests need not be
NOBODY_SPECIAL = "12345"


@pytest.mark.root
def test_user_without_rights_gets_the_namespaces_tier_where_user_namespaces_are_allowed():
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    most = Path("/proc/sys/user/max_user_namespaces")
    version = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True
    )
    if version.stdout.strip() != b"True" or not int(most.read_text()):
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


@pytest.fixture
def in_namespaces():
    """A zygote in namespaces whose judge has a group beside its own, and its pid out here."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to look into a process of another user")
    groups = os.getgroups()
    os.setgroups([4711])
    try:
        zygote = ZygoteProcess(ZygoteConfig(tier=Tier.NAMESPACES))
    finally:
        os.setgroups(groups)
    yield zygote, int(Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children").read_text())
    zygote.kill()


@pytest.mark.root
def test_what_is_mounted_in_namespaces_is_read_only_but_for_the_scratch_directory_and_grants_nothing(in_namespaces):
    mounts = [line.split() for line in Path(f"/proc/{in_namespaces[1]}/mountinfo").read_text().splitlines()]
    options = {mount[4]: set(mount[5].split(",")) for mount in mounts}
    devices = {place for place in options if place.startswith("/dev/")}
    assert {place for place in options if "rw" in options[place]} == {"/tmp", "/proc", *devices}
    assert [place for place in options if "nosuid" not in options[place]] == []
    assert {place for place in options if "nodev" not in options[place]} == devices
    assert {place for place in options if "noexec" in options[place]} >= {"/tmp", "/proc", *devices}
    (proc,) = [mount for mount in mounts if mount[4] == "/proc"]
    assert "subset=pid" in proc[-1].split(",")


@pytest.mark.root
def test_program_in_namespaces_has_neither_the_groups_nor_the_name_of_its_host(in_namespaces):
    code = "import os\nprint(os.getgroups(), os.uname().nodename, *os.getresuid(), *os.getresgid())"
    assert attack._run(in_namespaces[0], code, b"", attack_limits.bounds()).stdout == b"[] sandbox 1 1 1 1 1 1\n"


@pytest.mark.root
def test_zygote_in_namespaces_is_a_user_and_a_group_of_the_range_that_is_for_them_and_in_no_other_group(in_namespaces):
    status = dict(line.split(":", 1) for line in Path(f"/proc/{in_namespaces[1]}/status").read_text().splitlines())
    assert status["Uid"] == status["Gid"]
    assert {int(number) in namespaces.HOST_USERS for number in status["Gid"].split()} == {True}
    assert status["Groups"].split() == []


NEEDED_BY_ALL = dict.fromkeys(["cpu_time", "wall_time", "memory", "output", "open_files"], True)


@pytest.fixture
def chosen(monkeypatch):
    """Choose a tier where zygotes and attacks only say what they are told: what each holds, fails with, has in force.

    Returns the chosen tier and config, or the reasons that none was. No zygote is left in any case.
    """

    def choose(minimum, held=lambda config: {}, fails=None, in_force=lambda config: 4):
        alive, less = [], minimum is Tier.LANDLOCK  # which of the kinds leaves less memory to a program

        class Zygote:
            def __init__(self, config):
                self.config, self.in_force = config, InForce(config.tier, in_force(config), True)
                alive.append(self)

            def kill(self):
                alive.remove(self)

        def attack_it(zygote):
            if zygote.config.tier is fails:
                raise ZygoteFailed("it died")
            limits = {**NEEDED_BY_ALL, "network": True, **held(zygote.config)}
            return attack.Findings(zygote.config.tier, limits, 2000 if zygote.config.harness is less else 2001)

        monkeypatch.setattr(tiers, "ZygoteProcess", Zygote)
        monkeypatch.setattr(attack, "attack", attack_it)
        try:
            config, findings = tiers.find_tier(ZygoteConfig(), minimum)
        except tiers.TierRefused as refused:
            assert alive == []
            return refused.reasons
        assert alive == []
        assert config == ZygoteConfig(tier=findings.tier, at_least=InForce(findings.tier, 4, True))
        assert findings.most_memory_mb == 2000
        return findings.tier, findings.broken

    return choose


def test_strongest_tier_that_holds_for_both_kinds_of_zygotes_is_chosen(chosen):
    assert chosen(Tier.LANDLOCK) == (Tier.NAMESPACES, [])
    assert chosen(Tier.LANDLOCK, fails=Tier.NAMESPACES) == (Tier.LANDLOCK, [])
    for harness in (False, True):

        def held(config, harness=harness):
            return {"network": config.tier is not Tier.NAMESPACES or config.harness is not harness}

        assert chosen(Tier.LANDLOCK, held) == (Tier.LANDLOCK, [])
        assert chosen(Tier.NAMESPACES, held) == {Tier.NAMESPACES: "not enforced: network"}


def test_no_tier_below_the_minimum_is_tried_and_each_has_its_reason(chosen):
    found = chosen(Tier.LANDLOCK, lambda config: {"network": False, "memory": False}, fails=Tier.NAMESPACES)
    assert found == {Tier.NAMESPACES: "it died", Tier.LANDLOCK: "not enforced: memory, network"}
    found = chosen(Tier.NAMESPACES, in_force=lambda config: 4 + config.harness)
    assert "zygotes are not alike" in found[Tier.NAMESPACES]


def test_without_confinement_a_program_has_limits_and_nothing_else_is_asked_for(chosen):
    confined = {"network": False}
    assert chosen(Tier.UNCONFINED, lambda config: confined) == (Tier.UNCONFINED, [])
    for needed in NEEDED_BY_ALL:
        assert chosen(Tier.UNCONFINED, lambda config: {needed: False})[Tier.UNCONFINED] == f"not enforced: {needed}"  # noqa: B023
    assert attack.Findings(Tier.UNCONFINED, {}).broken == list(NEEDED_BY_ALL), "what was not attacked does not hold"


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
