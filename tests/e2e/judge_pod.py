"""A judge's pod as the operator creates it, for tests that run programs next to the server and inspect the container.

Commands run through `kubectl exec`, under the container's own user, seccomp profile and limits. What a test brings
along (pytest, the suite) goes to the pod's volume at /tmp; the image stays unchanged.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from e2e_world import GROUP, TIMEOUT, VERSION, World, wait_until

from deepcoder_demo.commands import CommandFailed
from deepcoder_demo.platform import delete_and_wait, kubectl
from deepcoder_demo.settings import REPOSITORY

READY_SECONDS = 120
HELD_SECONDS = 50.0
TOKEN_FILE = "/etc/deepcoder/token/token"
SUITE = "/tmp/suite"
TESTS = REPOSITORY / "sandbox_image" / "tests"
BROUGHT = (
    *("_pytest", "pytest", "iniconfig", "packaging", "pluggy", "pygments", "py"),
    *("hypothesis", "_hypothesis_globals", "sortedcontainers"),
)

SERVED = {"DEEPCODER_JUDGE_URL": "http://127.0.0.1:8080", "DEEPCODER_JUDGE_TOKEN_FILE": TOKEN_FILE}
"""Makes the suite attack the server."""

ASK = """
import sys, urllib.request
token = open(sys.argv[2]).read().strip()
asked = urllib.request.Request("http://127.0.0.1:8080" + sys.argv[1], headers={"Authorization": "Bearer " + token})
print(urllib.request.urlopen(asked, timeout=30).read().decode())
"""
JUDGE = """
import concurrent.futures, json, os, sys, urllib.request
token = open(sys.argv[1]).read().strip()
def judge(code):
    body = {"id": os.urandom(8).hex(), "code": code, "tests": [{"input": "", "output": "right"}], "time_limit_s": 20}
    headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}
    asked = urllib.request.Request("http://127.0.0.1:8080/v1/judge", json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(asked, timeout=200))
with concurrent.futures.ThreadPoolExecutor(8) as threads:
    print(json.dumps(list(threads.map(judge, json.load(sys.stdin)))))
"""
MEMORY = """
import os
for folder, peak, limit in (("/sys/fs/cgroup", "memory.peak", "memory.max"),
                            ("/sys/fs/cgroup/memory", "memory.max_usage_in_bytes", "memory.limit_in_bytes")):
    if os.path.exists(f"{folder}/{peak}"): print(open(f"{folder}/{peak}").read(), open(f"{folder}/{limit}").read())
"""
RELEASE = """
import os, signal, sys, time
wanted, resident, until = int(sys.argv[1]), int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
page = os.sysconf("SC_PAGE_SIZE")
def holds(pid):
    try: return int(open(f"/proc/{pid}/statm").read().split()[1]) * page >= resident
    except OSError: return False
held = []
while len(held) < wanted and time.monotonic() < until:
    time.sleep(0.05)
    held = [int(name) for name in os.listdir("/proc") if name.isdigit() and holds(name)]
for pid in held: os.kill(pid, signal.SIGUSR1)
print(len(held))
"""
UNPACK = """
import base64, io, sys, tarfile
tarfile.open(fileobj=io.BytesIO(base64.b64decode(sys.stdin.read()))).extractall(sys.argv[1])
"""


@dataclass(frozen=True)
class JudgePod:
    """One running judge."""

    world: World
    name: str

    @property
    def pod(self) -> Any:
        """The pod as the API server has it."""
        return self.world.core.read_namespaced_pod(self.name, self.world.namespace, _request_timeout=TIMEOUT)

    @property
    def restarts(self) -> int:
        return sum(status.restart_count for status in self.pod.status.container_statuses)

    def do(self, *command: str, seconds: float = 60, stdin: str | None = None) -> str:
        """Run a command in the judge's container; raises CommandFailed with its exit status."""
        interactive = ["-i"] if stdin is not None else []
        words = ["-n", self.world.namespace, "exec", *interactive, self.name, "-c", "judge", "--", *command]
        return kubectl(self.world.cluster, *words, seconds=seconds, stdin=stdin)

    def refusal(self, *command: str) -> CommandFailed:
        """Run a command that must fail."""
        try:
            said = self.do(*command, seconds=120)
        except CommandFailed as failed:
            return failed
        raise AssertionError(f"{command} did not fail: {said}")

    def python(self, program: str, *arguments: str, seconds: float = 60) -> str:
        return self.do("python3", "-c", program, *arguments, seconds=seconds)

    def ask(self, path: str) -> str:
        """GET a path from the server in the pod."""
        return self.python(ASK, path, TOKEN_FILE)

    def capacity(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("/v1/capacity"))
        return found

    def judge(self, programs: list[str]) -> list[dict[str, Any]]:
        """Submit programs at the same time, each with one test whose output is `right`."""
        said = self.do("python3", "-c", JUDGE, TOKEN_FILE, stdin=json.dumps(programs), seconds=240)
        answers: list[dict[str, Any]] = json.loads(said)
        return answers

    def judge_held(self, programs: list[str], resident_bytes: int) -> list[dict[str, Any]]:
        """Submit programs that wait for SIGUSR1, which they get once all of them hold that much memory."""
        with ThreadPoolExecutor(1) as thread:
            judging = thread.submit(self.judge, programs)
            held = int(self.python(RELEASE, str(len(programs)), str(resident_bytes), str(HELD_SECONDS)))
            answers = judging.result()
        assert held == len(programs), f"{held} held as much at once: {answers}"
        return answers

    def memory(self) -> tuple[int, int]:
        """The container's peak memory and its limit, in bytes."""
        peak, limit = (int(number) for number in self.python(MEMORY).split())
        return peak, limit

    def bring_suite(self) -> None:
        """Put pytest and the judge's tests on the pod's own volume."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=3) as archive:
            for package in BROUGHT:
                origin = Path(getattr(find_spec(package), "origin", None) or "")
                whole = origin.parent if origin.stem == "__init__" else origin
                archive.add(whole, f"site/{whole.name}", filter=_without_caches)
            archive.add(TESTS, "tests", filter=_without_caches)
        self.do(
            "python3", "-c", UNPACK, SUITE, stdin=base64.b64encode(packed.getvalue()).decode(), seconds=120
        )  # fmt: skip

    def run_suite(self, *files: str, seconds: float) -> str:
        """Run test files in the pod against the server; returns pytest's output, whether or not tests failed."""
        environment = [f"PYTHONPATH={SUITE}/site", *(f"{name}={value}" for name, value in SERVED.items())]
        pytest = ["python3", "-m", "pytest", "-v", "--no-header", "-rfEs", "--tb=short", "--durations=10"]
        try:
            return self.do("env", *environment, *pytest, *_options(SUITE, files), seconds=seconds)
        except CommandFailed as failed:
            return str(failed)


def collected(*files: str) -> set[str]:
    """Names of the tests in the files that apply to a served judge."""
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *_options(str(TESTS.parent), files)],
        env={**os.environ, **SERVED},
        capture_output=True,
        text=True,
        timeout=120,
    )
    names = {line for line in told.stdout.splitlines() if "::" in line}
    assert told.returncode == 0, told
    assert names, told
    return names


def outcomes(said: str) -> dict[str, set[str]]:
    """Names of the tests by outcome, from pytest's output."""
    found: dict[str, set[str]] = {}
    for name, outcome in re.findall(r"^\S*?(tests/\w+\.py::.+?) ([A-Z]{4,})(?: \(.*\))?$", said, re.M):
        found.setdefault(outcome, set()).add(name)
    return found


def _options(root: str, files: tuple[str, ...]) -> list[str]:
    """Arguments with which pytest runs or collects test files below `root`, the same in the pod and here."""
    plain = ["-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", root, "-o", "console_output_style=classic"]
    quiet = ["-W", "ignore::pytest.PytestUnknownMarkWarning"]
    return [*plain, *quiet, *(f"{root}/tests/{name}" for name in files)]


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name else entry


def create(world: World, name: str, slots: int, limits: dict[str, str]) -> None:
    """Create a pool of one judge; the operator sets limits that are not given."""
    resources = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": limits}
    body = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "SandboxPool",
        "metadata": {"name": name, "namespace": world.namespace},
        "spec": {
            "slotsPerPod": slots,
            "minReplicas": 1,
            "maxReplicas": 1,
            "template": {"spec": {"containers": [{"name": "judge", "resources": resources}]}},
        },
    }
    stop(world, name)
    world.objects.create_namespaced_custom_object(
        GROUP, VERSION, world.namespace, "sandboxpools", body, _request_timeout=TIMEOUT
    )


def start(world: World, name: str, slots: int) -> JudgePod:
    """Create a pool of one judge and wait until it is ready."""
    create(world, name, slots, limits={})

    def ready() -> str | None:
        found = world.core.list_namespaced_pod(
            world.namespace, label_selector=f"deepcoder.dev/pool={name}", _request_timeout=TIMEOUT
        ).items
        states = [s for pod in found for s in pod.status.container_statuses or []]
        return found[0].metadata.name if states and all(s.ready for s in states) else None

    return JudgePod(world, wait_until("the judge is ready", ready, READY_SECONDS))


def trouble(world: World, name: str) -> tuple[str, str]:
    """The pool's readiness condition, and the last log of its judge."""
    pool: Any = world.objects.get_namespaced_custom_object(
        GROUP, VERSION, world.namespace, "sandboxpools", name, _request_timeout=TIMEOUT
    )
    conditions = {each["type"]: each for each in pool.get("status", {}).get("conditions", ())}
    words = ["-n", world.namespace, "logs", "-l", f"deepcoder.dev/pool={name}", "-c", "judge"]
    return str(conditions.get("Ready", {}).get("message")), kubectl(world.cluster, *words)


def stop(world: World, name: str) -> None:
    """Remove the pool; also before a test, because a killed one leaves it."""
    delete_and_wait(world.cluster, "sandboxpool", name, world.namespace, seconds=READY_SECONDS)
    selector = f"deepcoder.dev/pool={name}"
    for kind in ("pods", "secrets"):
        words = ["-n", world.namespace, "get", kind, "-l", selector, "-o", "name"]
        wait_until(
            f"{kind} of the pool are gone", lambda words=words: not kubectl(world.cluster, *words), READY_SECONDS
        )
