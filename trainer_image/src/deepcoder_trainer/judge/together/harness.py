"""The remote side of judging: runs a program once per test, each time in a separate process, and reports the results.

It is sent as text to a hosted interpreter and runs in its session, so it stands alone, supports old Python versions and
does not change its caller's state. It compares nothing, because it gets inputs only. Limits of CPU time, memory, output
and wall clock are applied as in our own judge, as far as the place allows. Time in which other processes kept a program
from the CPU does not count as wall-clock time if the kernel reports it, up to a ceiling beyond which nothing can be
concluded about the program. The report is packed and enclosed in two marks with a number used once, so that changes to
line ends or interleaved outputs cannot alter it unnoticed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from typing import Any

_POLL_SECONDS = 0.005
_STDERR_BYTES = 2048
_WALL_PER_CPU = 3.0
_CEILING = 2.0
"""Ceiling of a program's wall-clock time, as a multiple of its limit. Neither its own CPU time nor its threads' waits
for each other count as waiting, so by itself a program reaches its limit before this ceiling."""
_CEILING_MORE_SECONDS = 2.0
_LOOK_SECONDS = 0.05
_SLOW_LOOK_SECONDS = 0.005
"""If a look takes longer, the looking process itself had to wait, so CPU time used meanwhile is no evidence."""
_MOST_THREADS = 256
_SETTINGS = ("kind", "fn_name", "memory_limit_mb", "time_limit_s", "output_bytes")


def packed(document: object) -> str:
    """Return a document as base64 of compressed JSON, which survives any transport of text."""
    return base64.b64encode(zlib.compress(json.dumps(document, ensure_ascii=False).encode(), 6)).decode()


def run(job: dict[str, Any]) -> str:
    """Run the program on the inputs, in order, and return the marked report."""
    began = time.monotonic()
    left = job["total_seconds"]
    runs: list[dict[str, Any]] = []
    sent = 0
    for given in job["inputs"]:
        if left <= 0:
            runs.append({"killed": "total"})
            break
        one = _run_one(job, given, left)
        left -= one.pop("took")
        sent += len(one["stdout"]) + len(one["report"])
        done = bool(job["stop"] and (one["killed"] or one["signal"] or _failed(one)))
        for name in ("stdout", "stderr", "report"):
            one[name] = base64.b64encode(one[name]).decode()  # as JSON alone, a byte may take six
        runs.append(one)
        if done or sent > job["report_bytes"]:
            break
    mark = "deepcoder:" + job["nonce"]
    report = {"runs": runs, "seconds": time.monotonic() - began, "python": sys.version.split()[0]}
    return "\n{}:begin\n{}\n{}:end\n".format(mark, packed(report), mark)


def _failed(one: dict[str, Any]) -> bool:
    return one["status"] != 0 or one["report"].startswith(b'{"failure"')


def _run_one(job: dict[str, Any], given: str, left: float) -> dict[str, Any]:
    folder = tempfile.mkdtemp(prefix="deepcoder-")
    try:
        with contextlib.ExitStack() as stack:
            # Files without names, because the program may remove or replace files that it finds.
            names = ("source", "stdin", "stdout", "stderr", "report")
            files = {name: stack.enter_context(tempfile.TemporaryFile(buffering=0)) for name in names}
            for name, text in (("source", job["source"]), ("stdin", given)):
                files[name].write(text.encode("utf-8", "surrogatepass"))
                files[name].seek(0)
            source, report = files["source"].fileno(), files["report"].fileno()
            settings = {name: job[name] for name in _SETTINGS}
            settings.update(source=source, report=report)
            child = subprocess.Popen(
                [sys.executable or "python3", "-I", "-B", "-c", job["runner"]],
                stdin=files["stdin"],
                stdout=files["stdout"],
                stderr=files["stderr"],
                cwd=folder,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "HOME": folder,
                    "LANG": "C.UTF-8",
                    "PYTHONIOENCODING": "utf-8:surrogateescape",
                    job["settings_variable"]: json.dumps(settings),
                },
                pass_fds=(source, report),
                start_new_session=True,
            )
            one = _watch(child, job["time_limit_s"], min(_WALL_PER_CPU * job["time_limit_s"], left))
            sizes = {name: os.fstat(files[name].fileno()).st_size for name in names}
            one["stdout"] = os.pread(files["stdout"].fileno(), job["output_bytes"], 0)
            one["stderr"] = os.pread(files["stderr"].fileno(), _STDERR_BYTES, max(0, sizes["stderr"] - _STDERR_BYTES))
            one["report"] = os.pread(report, job["output_bytes"], 0)
            one["written"] = sum(sizes[name] >= job["output_bytes"] for name in ("stdout", "stderr"))
            return one
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _watch(child: subprocess.Popen[bytes], cpu: float, wall: float) -> dict[str, Any]:
    began, killed = time.monotonic(), None
    waits = _Waits(child.pid)
    while True:
        waits.look()
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        elapsed = time.monotonic() - began
        took = elapsed - waits.seconds(elapsed)
        if pid:
            break
        if killed is None:
            if _cpu(child.pid) > cpu + 0.5:
                killed = "cpu"
            elif took > wall and not waits.is_runnable():  # a runnable thread may be waiting for a CPU right now
                killed = "wall"
            elif elapsed > _CEILING * wall + _CEILING_MORE_SECONDS:
                killed = "starved"
            if killed is not None:
                _end(child.pid)
        time.sleep(_POLL_SECONDS)
    child.returncode = 0  # the child is reaped, so Popen must not wait for it again
    _end(child.pid)  # kill what the program left in its session
    return {
        "killed": killed,
        "status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) and killed is None else None,
        "cpu": usage.ru_utime + usage.ru_stime,
        "took": took,
    }


def _end(group: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGKILL)


class _Waits:
    """Measures how long other processes kept a process from the CPUs, by looking at its threads at random moments.

    The longest wait of a single thread counts in full. The sum of all waits counts only as far as the process was
    stalled, that is, a thread was runnable and none ran. Threads that wait for each other are not stalled.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._waited: dict[str, int] = {}
        self._stalled = self._used = 0.0
        self._looked = self._look_at = time.monotonic()

    def look(self) -> None:
        """Take a sample if it is time to."""
        began = time.monotonic()
        if began < self._look_at:
            return
        used = _cpu(self._pid)
        if self.is_runnable() and (_cpu(self._pid) == used or time.monotonic() - began > _SLOW_LOOK_SECONDS):
            self._stalled += began - self._looked
        for thread in self._threads():
            waited = int(self._field(thread, "schedstat", 1) or 0)
            self._waited[thread] = max(self._waited.get(thread, 0), waited)
        self._used = max(self._used, used)
        self._looked = began
        self._look_at = began + _LOOK_SECONDS * (0.5 + os.urandom(1)[0] / 255.0)

    def seconds(self, elapsed: float) -> float:
        """Return the seconds of waiting that count, `elapsed` seconds after the process's start."""
        waits = [waited / 1e9 for waited in self._waited.values()]
        kept = max(max(waits), min(sum(waits), self._stalled)) if waits else 0.0
        return min(kept, max(0.0, elapsed - self._used))

    def is_runnable(self) -> bool:
        """Whether a thread runs or waits for a CPU at this moment. Such a wait is not counted yet."""
        return any(self._field(thread, "stat", 0) == "R" for thread in self._threads())

    def _threads(self) -> list[str]:
        try:
            return os.listdir("/proc/%d/task" % self._pid)[:_MOST_THREADS]
        except OSError:
            return []

    def _field(self, thread: str, name: str, index: int) -> str | None:
        """Return a field of a thread's file, counted after its name, which is in brackets and may contain anything."""
        try:
            with open("/proc/%d/task/%s/%s" % (self._pid, thread, name), errors="replace") as file:
                return file.read().rpartition(")")[2].split()[index]
        except (OSError, IndexError):
            return None


def _cpu(pid: int) -> float:
    """Return the CPU time, in seconds, that all threads of a process have used so far."""
    with contextlib.suppress(OSError):
        return time.clock_gettime((~pid << 3) | 2)  # the process's CPU clock; its stat file counts in hundredths
    try:
        with open("/proc/%d/stat" % pid) as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
