"""The Landlock tier in its real place: hostile tests inside a judge's pod, against the server in that pod."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from e2e_world import World, wait_until
from judge_pod import READY_SECONDS, JudgePod, collected, create, outcomes, start, stop, trouble

from deepcoder_demo.commands import CommandFailed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

POOL, SMALL = "e2e-hostile", "e2e-small"
HOSTILE = (
    "test_judge_hostile.py",
    "test_judge_isolation.py",
    "test_judge_limits.py",
    "test_judge_odd_programs.py",
    "test_judge_thread_gate.py",
    "test_judge_refuses_to_start.py",
)
SKIPPED = {
    "tests/test_judge_hostile.py::test_scratch_directory_is_capped_in_the_namespaces_tier[Landlock]",
    "tests/test_judge_hostile.py::test_zygote_that_cannot_clean_up_is_replaced[Landlock]",
}
"""Tests of the scratch directory, which the Landlock tier does not have."""


@pytest.fixture(scope="module")
def judge(world: World) -> Iterator[JudgePod]:
    """A judge of two slots."""
    try:
        yield start(world, POOL, slots=2)
    finally:
        stop(world, POOL)


STATUS = """
import json, os
fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
held = {name: fields[name].strip() for name in ("Seccomp", "NoNewPrivs", "CapPrm", "CapEff", "CapBnd")}
held["users"] = sorted({os.getuid(), os.geteuid(), os.getgid()})
held["account"] = os.path.exists("/var/run/secrets/kubernetes.io")
try:
    open("/opt/written", "w")
    held["root"] = "writable"
except OSError as error:
    held["root"] = error.strerror
print(json.dumps(held))
"""


def test_pod_is_restricted_and_runs_the_image_as_it_was_shipped(world: World, judge: JudgePod) -> None:
    labels = world.core.read_namespace(world.namespace).metadata.labels
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    spec = judge.pod.spec
    (container,) = spec.containers
    assert container.image == world.cluster.images.sandbox
    assert spec.automount_service_account_token is False
    assert spec.security_context.run_as_non_root is True
    assert spec.security_context.seccomp_profile.type == "RuntimeDefault"
    assert container.security_context.read_only_root_filesystem is True
    assert container.security_context.capabilities.drop == ["ALL"]
    none = "0000000000000000"
    assert json.loads(judge.python(STATUS)) == {
        "Seccomp": "2",
        "NoNewPrivs": "1",
        "CapPrm": none,
        "CapEff": none,
        "CapBnd": none,
        "users": [1000],
        "account": False,
        "root": "Read-only file system",
    }


def test_server_reports_the_landlock_tier_with_every_limit_in_force(judge: JudgePod) -> None:
    capacity = judge.capacity()
    assert capacity["tier"] == "Landlock"
    assert [name for name, held in capacity["limits"].items() if not held] == []
    metrics = judge.ask("/metrics")
    assert 'deepcoder_sandbox_isolation_tier{tier="Landlock"} 1.0' in metrics
    told = dict(re.findall(r'deepcoder_sandbox_limit_enforced\{limit="(\w+)"\} (\S+)', metrics))
    assert told == dict.fromkeys(capacity["limits"], "1.0")


def test_no_hostile_program_gets_anywhere_in_the_pod(judge: JudgePod) -> None:
    tests = collected(*HOSTILE)
    judge.bring_suite()
    said = judge.run_suite(*HOSTILE, seconds=840)
    print(said)
    assert outcomes(said) == {"PASSED": tests - SKIPPED, "SKIPPED": SKIPPED}, said
    assert judge.restarts == 0


def test_stronger_tier_than_the_pod_allows_is_refused_with_the_mend(judge: JudgePod) -> None:
    command = ["deepcoder-sandbox", "serve", "--socket", "/tmp/other.sock", "--minimum-tier", "Namespaces"]
    refused = judge.refusal(*command)
    assert refused.status == 64
    assert "--minimum-tier Namespaces is not available here" in str(refused)
    assert "Fix: Namespaces needs root or unprivileged user namespaces" in str(refused)


GREEDY = """
import signal, sys, time
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
x = bytearray(800 << 20)
x[::4096] = b"1" * len(x[::4096])
for _ in range(63):
    sys.stdout.buffer.write(b"a" * (1 << 20)); sys.stderr.buffer.write(b"b" * (1 << 20))
sys.stdout.flush()
y = bytearray(100 << 20)
y[::4096] = b"1" * len(y[::4096])
while not told: time.sleep(0.01)
"""
"""It holds HELD bytes only when all of them are written. Then it waits for the signal that the others do, too."""

HELD = 890 << 20
BEYOND = "x = bytearray(2 << 30)"


def test_programs_that_take_all_they_may_fit_the_pod_and_are_judged(judge: JudgePod) -> None:
    for _ in range(2):
        greedy, beyond = judge.judge_held([GREEDY] * 2, HELD), judge.judge([BEYOND] * 2)
        assert [answer["verdicts"][0]["verdict"] for answer in greedy] == ["wrong_answer"] * 2, greedy
        assert [answer["verdicts"][0]["verdict"] for answer in beyond] == ["memory_limit"] * 2, beyond
    peak, limit = judge.memory()
    print(f"peak {peak >> 20} MiB of {limit >> 20} MiB")
    assert 2 * 1000 << 20 < peak < limit
    assert judge.restarts == 0


def test_judge_with_too_little_memory_for_its_slots_does_not_start_and_says_why(world: World) -> None:
    create(world, SMALL, slots=2, limits={"memory": "2Gi"})

    def told() -> str | None:
        try:
            message, log = trouble(world, SMALL)
        except CommandFailed:  # there is no log yet
            return None
        return log if "CrashLoopBackOff" in message and log.strip() else None

    try:
        log = wait_until("the pool says that its judge does not start", told, READY_SECONDS)
    finally:
        stop(world, SMALL)
    assert "the container's memory limit is 2048 MiB" in log
    assert "Fix: raise the limit, or lower --slots (slotsPerPod of a pool" in log
