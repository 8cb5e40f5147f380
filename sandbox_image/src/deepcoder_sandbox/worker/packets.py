"""The packets between the judge and a zygote: a line of fields requests a run, and binary numbers report how it ended.

They are read and written without `json`, because all Python code that a zygote runs between two forks dirties pages
that the kernel then copies, for every test of every program. Only the first packet, which configures a zygote, is JSON.
An invalid packet raises ValueError, which is the judge's failure.

A packet contains nothing of a submission except its numbers, because the zygote's next copy could find what the zygote
has read.
"""

from __future__ import annotations

import os
import signal
import struct
from typing import NamedTuple

ERROR = b"error "
"""What the packet begins with that a zygote sends for a run which failed by no doing of the program's."""

RING, CANCEL, HUNG_UP = b"ring", b"cancel", b"hung up"
TO_A_RUN = (RING, CANCEL, HUNG_UP)
GO_ON = (RING, HUNG_UP)
"""What the judge may send during a run: have its alarm rung, have it ended, look out for its end, which is near.

After those of `GO_ON` it goes on."""

TOLD_BYTES = 32
"""Longest of those, and more."""

JOB_BYTES = 384
"""Longest packet that asks for a run."""

INLINE_BYTES = 1 << 13
"""A session's (livecodebench): longest input or output that a packet holds, or program and first input."""

SESSION_BYTES = INLINE_BYTES + 1
"""Longest packet of a session."""

STARTED = b"started "
"""What the packet begins with by which a session's runner makes itself known to the judge, over the zygote's socket. It
lies in memory as it is sent: two numbers more, which `decode_started` returns."""

_TOLD_AT_START = struct.Struct("=8sdd")
STARTED_BYTES = _TOLD_AT_START.size

PREPARED, NOT_PREPARED, INLINE, IN_FILE, WITH_PROGRAM = b"prepared", b"!", b"=", b"#", b"+"
"""A session's packets, or what they begin with: that preparing took its time, why it failed, a text, the length of one
in its file, or the program and, behind it, the first text. Anything else is JSON that tells how a test failed."""

CANCELLED = (b"cancelled, unclean", b"cancelled")
"""What a zygote says of a run that it has ended since the judge said so: whether nothing was left behind, and no more.
The judge knows when that was, and what the run has used; a zygote that writes numbers would touch what its next copy
has to copy."""

ENDED = b"ended   "
"""What the packet begins with that tells how a run ended. It lies in memory as it is sent (`worker.reap`)."""

_ENDED = struct.Struct("=8sii3d4qq104x")
"""`ENDED`, the wait status and whether the run was clean; its wall, starved and setup seconds; the kernel's rusage, of
which user time, system time (seconds and microseconds each) and the peak of memory are read."""

ENDED_BYTES = _ENDED.size
"""Length of that. What the zygote ended the run for follows, if it did."""

RUSAGE_AT = 40
"""Where the rusage begins, in bytes."""
STATUS_AT, CLEAN_AT = 2, 3
"""The place of each integer, counted in integers."""
WALL_AT, STARVED_AT, SETUP_AT = 2, 3, 4
"""The place of each float, counted in floats."""

FOR_WALL = "wall:"
"""How the field that tells what a run was ended for begins where it is the wall clock; the threads' states follow."""


class RunLimits(NamedTuple):
    """Limits of one run, in the units of its fields' names."""

    cpu_limit_s: float
    wall_limit_s: float
    """Time in which others kept the run from going on left out."""
    memory_limit_mb: int
    file_bytes: int


class Job(NamedTuple):
    """A run that the judge asks for."""

    kind: str
    limits: RunLimits
    source_bytes: int = 0
    """Length of the source in the code descriptor."""
    name_bytes: int = 0
    """Length of the name behind it of the function that is called; 0 where none is."""
    compiled_bytes: int = 0
    """Length of the code object behind that, which an earlier runner left and sealed; 0 where there is none."""
    preamble: bool = False
    """Whether the released reward's imports stand before the program (taco-compat)."""


class RunEnded(NamedTuple):
    """How a run ended, as the zygote, which the program cannot reach, saw it."""

    wait_status: int
    """As wait(2) tells it."""
    cpu_s: float
    """User and system time of the whole process, what confining it took left out."""
    wall_s: float
    """From fork to end."""
    starved_s: float
    """How much of that others kept it from going on; not told of runs shorter than a second."""
    max_rss_kb: int
    """Peak resident set, in KiB."""
    killed_for: str | None
    """cpu, wall or cancelled, where the zygote ended it."""
    clean: bool
    """Whether nothing was left behind; if not, the zygote is to be replaced."""
    states: str = ""
    """What its threads did when it was ended for the wall clock: a letter each, as /proc has it (S: it sleeps)."""

    @property
    def signal(self) -> int | None:
        """The signal it died of."""
        return os.WTERMSIG(self.wait_status) if os.WIFSIGNALED(self.wait_status) else None

    @property
    def exit_status(self) -> int | None:
        """Its exit status, if it left by itself."""
        return os.WEXITSTATUS(self.wait_status) if os.WIFEXITED(self.wait_status) else None


def encode_job(job: Job) -> bytes:
    """Return the packet."""
    kind, limits, source_bytes, name_bytes, compiled_bytes, preamble = job
    fields = (kind, *limits, source_bytes, name_bytes, compiled_bytes, int(preamble))
    packet = " ".join(map(str, fields)).encode()
    if len(packet) > JOB_BYTES:
        raise ValueError(f"a packet of more than {JOB_BYTES} bytes")
    return packet


PlainJob = tuple[str, tuple[float, float, int, int], int, int, int, bool]
"""The fields of a Job: classes of tuples are more for a runner to touch."""


def decode_job(packet: bytes) -> PlainJob:
    """Return the fields of what `encode_job` was given."""
    kind, cpu, wall, memory, file, source, name, compiled, preamble = packet.decode().split(" ")
    limits = float(cpu), float(wall), int(memory), int(file)
    return kind, limits, int(source), int(name), int(compiled), preamble == "1"


def decode_started(packet: bytes) -> tuple[float, float]:
    """Return what the runner has used so far, and the time (monotonic), both in s."""
    cpu_s, now = _TOLD_AT_START.unpack(packet)[1:]
    return cpu_s, now


def decode_ended(packet: bytes) -> RunEnded:
    """Return how a run ended; of one that was cancelled only that is known. Raises ValueError for any other packet."""
    if packet in CANCELLED:
        return RunEnded(int(signal.SIGKILL), 0.0, 0.0, 0.0, 0, "cancelled", packet == CANCELLED[True])
    if len(packet) < ENDED_BYTES or not packet.startswith(ENDED):
        raise ValueError(f"{len(packet)} bytes that do not tell how a run ended")
    _, status, clean, wall_s, starved_s, setup_s, *cpu, rss = _ENDED.unpack_from(packet)
    cpu_s = cpu[0] + cpu[2] + (cpu[1] + cpu[3]) / 1e6 - setup_s
    killed, _, states = packet[ENDED_BYTES:].decode().partition(":")
    return RunEnded(status, max(0.0, cpu_s), wall_s, starved_s, rss, killed or None, clean == 1, states)
