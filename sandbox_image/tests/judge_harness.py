"""Who judges in a test: a slot of the test's own, or a server beside it; and what is to be seen of either from outside.

What is seen is read from /proc of the machine, or of the pod where the tests run in one: processes, descriptors,
System V and POSIX objects, shared memory. Where the kernel does not show something, that is None and no zero.
"""

from __future__ import annotations

import os
import re
import time
import urllib.request
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from deepcoder_contracts.judge import Capacity, JudgeRequest, JudgeResponse, Tier
from deepcoder_sandbox.slot import Slot
from deepcoder_sandbox.submission import Submission

_TIMEOUT_S = 240


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it."""

    pid: int
    parent: int
    state: str


class Judging(Protocol):
    """What the tests need of whoever judges."""

    slots: int
    """Programs judged at once."""

    @property
    def tier(self) -> Tier:
        """Confinement of the programs."""

    @property
    def top_pid(self) -> int:
        """The process below which everything of the judge is."""

    def judge(self, request: JudgeRequest, output_bytes: int) -> JudgeResponse:
        """Judge a request; `output_bytes` bounds the output where that can be chosen."""

    def processes(self) -> list[Process]:
        """Every process of the judge's below that, ended ones that nobody has waited for included."""

    def open_descriptors(self) -> int:
        """How many descriptors the judge holds."""


class OwnSlot:
    """A slot in this process."""

    slots = 1

    def __init__(self, slot: Slot) -> None:
        self._slot = slot

    @property
    def tier(self) -> Tier:
        return self._slot.ensure_zygote().config.tier

    @property
    def top_pid(self) -> int:
        return os.getpid()

    def judge(self, request: JudgeRequest, output_bytes: int) -> JudgeResponse:
        submission = Submission(request, tuple(request.tests or ()), output_bytes)
        return self._slot.judge(submission, time.monotonic() + 120)

    @cached_property
    def _others(self) -> set[int]:
        """What other tests have started in this process, and may leave or end meanwhile: all that is no zygote of this
        slot's when it is first asked for."""
        zygotes = {zygote.pid for zygote in self._slot._zygotes.values()}
        return {process.pid for process in _processes() if process.parent == os.getpid()} - zygotes

    def processes(self) -> list[Process]:
        return descendants(self.top_pid, self._others)

    def open_descriptors(self) -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def close(self) -> None:
        self._slot.close()


class Served:
    """A server that runs beside the tests, in the same pod."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.slots = self.capacity.slots

    @cached_property
    def capacity(self) -> Capacity:
        """What the server says of itself."""
        return Capacity.model_validate_json(self._ask("/v1/capacity"))

    @property
    def tier(self) -> Tier:
        return self.capacity.tier

    @cached_property
    def top_pid(self) -> int:
        found = [
            pid
            for pid in all_pids()
            if b"deepcoder-sandbox\0serve" in cmdline(pid) and cmdline(parent_of(pid)) != cmdline(pid)
        ]
        assert len(found) == 1, found
        return found[0]

    def judge(self, request: JudgeRequest, output_bytes: int) -> JudgeResponse:
        return JudgeResponse.model_validate_json(self._ask("/v1/judge", request.model_dump_json().encode()))

    def processes(self) -> list[Process]:
        return descendants(self.top_pid)

    def open_descriptors(self) -> int:
        metrics = self._ask("/metrics").decode()
        return round(float(re.search(r"^process_open_fds (\S+)$", metrics, re.MULTILINE)[1]))

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self._url + path, body, self._headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return bytes(answer.read())


def in_every_slot(judging: Judging, request: JudgeRequest, output_bytes: int = 1 << 20) -> list[JudgeResponse]:
    """Judge the request twice as often as there are slots, at once: if it lasts a moment, every slot has had it."""
    requests = [request.model_copy(update={"id": os.urandom(8).hex()}) for _ in range(2 * judging.slots)]
    if judging.slots == 1:
        return [judging.judge(each, output_bytes) for each in requests]
    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(lambda each: judging.judge(each, output_bytes), requests))


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def parent_of(pid: int) -> int:
    return next((process.parent for process in _processes() if process.pid == pid), 0)


def _processes() -> list[Process]:
    found = []
    for pid in all_pids():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found.append(Process(pid, int(fields[1]), fields[0]))
    return found


def descendants(pid: int, without: Collection[int] = ()) -> list[Process]:
    """Every process below `pid`, ended ones that nobody has waited for included; `without` some and what is below."""
    everyone, found, parents = [process for process in _processes() if process.pid not in without], [], {pid}
    while parents:
        children = [process for process in everyone if process.parent in parents]
        found += children
        parents = {child.pid for child in children}
    return found
