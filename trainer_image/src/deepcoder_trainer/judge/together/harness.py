"""The far side of judging: runs a program once a test, each time in a process of its own, and reports what came of it.

Sent as text to an interpreter that is not ours and run in its session, so it stands alone, keeps to old Python and
leaves its caller's state alone. It compares nothing, since it is given inputs only. Limits of CPU time, memory, output
and wall clock are taken as the judge's own are, as far as this place lets them; time spent waiting for a processor is
left out of the wall clock where the kernel tells it. A report goes out between two marks that carry a number used once,
packed, so that nothing that the place does to line ends or to several outputs can alter it unseen.
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
_SETTINGS = ("kind", "fn_name", "memory_limit_mb", "time_limit_s", "output_bytes")


def packed(document: object) -> str:
    """As text that survives any transport of text."""
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
            # Files without names: the program may remove or replace whatever it finds.
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
    began, waited, killed = time.monotonic(), 0.0, None
    while True:
        waited = max(waited, _waited(child.pid))
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        took = max(0.0, time.monotonic() - began - waited)
        if pid:
            break
        if killed is None and (took > wall or _cpu(child.pid) > cpu + 0.5):
            killed = "wall" if took > wall else "cpu"
            _end(child.pid)
        time.sleep(_POLL_SECONDS)
    child.returncode = 0  # it is reaped: Popen is not to wait for it again
    _end(child.pid)  # whatever the program left in its session
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


def _waited(pid: int) -> float:
    """Seconds that a process was ready and had no processor, as far as its kernel tells."""
    try:
        with open("/proc/%d/schedstat" % pid) as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _cpu(pid: int) -> float:
    """Seconds of CPU time that all threads of a process have taken so far."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
