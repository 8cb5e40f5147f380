"""The zygote: a small warm Python that forks one confined runner for each run it is asked for.

It speaks JSON packets over a socket pair with the judge, descriptors beside them, and never reads what those hold: the
next submission's runner is a copy of this process, and must find nothing of the one before. It ends when the judge
hangs up.

A run that could not be started, or a runner that ended before it was confined, is answered with `error`: the judge's
failure, never the program's.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from deepcoder_sandbox.worker import confine, program, session, supervise, taco

_MARK = struct.Struct("<Bd")
_PACKET_BYTES = 1 << 16
_MAX_DESCRIPTORS = 16
_NOT_CONFINED = 99


class Zygote:
    """Serves runs on one socket, one at a time."""

    def __init__(self, channel: socket.socket, confinement: confine.Confinement, proc: int) -> None:
        self._channel = channel
        self._confinement = confinement
        self._proc = proc
        self._mark = mmap.mmap(-1, mmap.PAGESIZE)

    def serve(self, after_run: Callable[[], None]) -> None:
        """Answer requests until the judge hangs up. `after_run` cleans up what a program may have left."""
        while True:
            packet, descriptors, _, _ = socket.recv_fds(self._channel, _PACKET_BYTES, _MAX_DESCRIPTORS)
            if not packet:
                return
            job = json.loads(packet)
            if job["mode"] in ("cancel", "ring"):  # the run was over already
                continue
            try:
                answer = self._run(job, descriptors)
                answer["clean"] = self._clean(after_run)
            except OSError as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            self._channel.send(json.dumps(answer).encode())

    def _clean(self, after_run: Callable[[], None]) -> bool:
        """Whether nothing is left of the program; if not, the judge replaces this zygote."""
        try:
            after_run()
        except (OSError, RecursionError):
            return False
        return True

    def _run(self, job: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        self._mark[: _MARK.size] = _MARK.pack(0, 0.0)
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_runner(job, descriptors, zygote)
        ended = supervise.supervise(
            pid,
            self._proc,
            self._channel,
            cpu_limit_s=job["cpu_limit_s"],
            wall_limit_s=job["wall_limit_s"],
            setup_cpu_s=lambda: self._ready()[1],
        )
        ready, setup_s = self._ready()
        if not ready:
            return {"error": f"the runner ended before it was confined (wait status {ended.wait_status})"}
        return {
            "wait_status": ended.wait_status,
            "cpu_s": max(0.0, ended.cpu_s - setup_s),
            "wall_s": ended.wall_s,
            "starved_s": ended.starved_s,
            "max_rss_kb": ended.max_rss_kb,
            "killed_for": ended.killed_for,
        }

    def _ready(self) -> tuple[bool, float]:
        """Whether the runner was confined, and the CPU seconds that took."""
        ready, setup_s = _MARK.unpack(self._mark[: _MARK.size])
        return bool(ready), setup_s

    def _become_runner(self, job: dict[str, Any], descriptors: list[int], zygote: int) -> NoReturn:
        """Confine this copy, mark it ready and hand it to the program. The copy never goes on as a zygote."""
        try:
            start = _program_of(job)
            limits = confine.Limits(
                cpu_s=job["cpu_limit_s"] + 1.0,
                memory_mb=job["memory_limit_mb"],
                file_bytes=job["file_bytes"],
                open_files=job["open_files"],
                stack_bytes=job["stack_bytes"],
            )
            confine.apply(self._confinement, limits, zygote, descriptors)
            self._mark[: _MARK.size] = _MARK.pack(1, time.process_time())
            self._mark.close()  # the program cannot take the mark back
        except BaseException as error:
            os.write(2, f"deepcoder-sandbox: cannot confine a runner: {error!r}\n".encode())
            os._exit(_NOT_CONFINED)
        try:
            start()
        finally:
            os._exit(_NOT_CONFINED)


def _program_of(job: dict[str, Any]) -> Callable[[], NoReturn]:
    """Return what runs the job's program once this copy is confined."""
    if job["mode"] == "session":
        return partial(session.run, job["fn_name"])
    preamble = taco.PREAMBLE if job["preamble"] else {}
    return partial(program.run, job["kind"], job["fn_name"], job["source_bytes"], preamble)
