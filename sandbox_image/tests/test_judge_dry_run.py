"""Becoming a runner to no effect: the zygote that rehearsed it can do all that it could, and serves."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from deepcoder_sandbox.worker import dry_run, zygote
from deepcoder_sandbox.worker.confine import Confinement
from deepcoder_sandbox.worker.packets import Job, PlainJob, encode_job

_REHEARSING = """
import json, os, resource, sys
from deepcoder_sandbox.worker import dry_run
from deepcoder_sandbox.worker.confine import Confinement
from deepcoder_sandbox.worker.packets import Job

def state():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {
        "files": sorted(os.listdir("/proc/self/fd"))[:-1],
        "state": [status[name].split() for name in ("Uid", "Gid", "NoNewPrivs", "Seccomp", "CapEff")],
        "limited": [which for which in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE)
                    for limit in resource.getrlimit(which) if 0 <= limit < 1 << 39],
    }

def nothing(job, begin):
    begin()
    return 0

opened = open(os.devnull)
before = state()
for number in range(2 * dry_run.TIMES):
    harmless = Confinement.harmless(confined=True)
    job = Job("stdin", dry_run.ABOVE_ALL)
    dry_run.become_runner(nothing, job, harmless, sessions=number >= dry_run.TIMES)
print(json.dumps([before, state()]))
"""


def test_rehearsing_confines_nothing_and_closes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", _REHEARSING], capture_output=True, text=True, timeout=120, check=True)
    before, after = json.loads(done.stdout)

    assert after == before


def test_rehearsal_that_fails_is_told() -> None:
    def fail(job: PlainJob, begin: Callable[[], None]) -> int:
        raise ValueError("not prepared")

    collecting = gc.isenabled()
    try:
        job = Job("stdin", dry_run.ABOVE_ALL)
        with pytest.raises(RuntimeError, match="rehearsal"):
            dry_run.become_runner(fail, job, Confinement.harmless(confined=True), sessions=False)
    finally:
        if collecting:
            gc.enable()


def test_runner_whose_zygote_has_gone_does_not_start() -> None:
    """One that ended before the kernel was told to end its runner with it."""
    harmless = Confinement.harmless(confined=False)
    with pytest.raises(ProcessLookupError):
        harmless.apply(dry_run.ABOVE_ALL, os.getppid() + 1, 1 << 20, (1 << 20) - 1)


def test_runner_has_started_also_where_its_clock_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU clock of a process lags by up to a tick, and 0 seconds mean that nothing was confined."""
    monkeypatch.setattr(zygote, "process_time", lambda: 0.0)
    told: list[float] = []

    def look(job: PlainJob, begin: Callable[[], None]) -> int:
        told.append(served._setup_cpu_s())
        begin()
        return 0

    statuses: list[int] = []
    collecting = gc.isenabled()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        harmless = Confinement.harmless(confined=True)
        served = zygote.Zygote(ours, harmless, -1, None, look, sessions=False, leave=statuses.append)
        packet = encode_job(Job("stdin", dry_run.ABOVE_ALL))
        served.become_runner(packet, 1 << 20, os.getppid())
    (gc.enable if collecting else gc.disable)()

    assert statuses == [0]
    assert told[0] > 0
