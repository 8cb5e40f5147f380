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
"""Prefix of a zygote's packet for a run that failed through no fault of the program."""

RING, CANCEL, HUNG_UP = b"ring", b"cancel", b"hung up"
TO_A_RUN = (RING, CANCEL, HUNG_UP)
GO_ON = (RING, HUNG_UP)
"""What the judge may send during a run: ring its alarm, end it, or look out for its end, which is near.

After those in `GO_ON`, the run continues."""

TOLD_BYTES = 32
"""Longest of these, with room to spare."""

JOB_BYTES = 384
"""Longest packet that requests a run."""

INLINE_BYTES = 1 << 13
"""Sessions (livecodebench): longest program, input or output in a packet."""

SESSION_BYTES = INLINE_BYTES + 1
"""Longest packet of a session."""

STARTED = b"started "
"""Prefix of the packet by which a session's runner makes itself known to the judge, over the zygote's socket. It lies
in memory as it is sent, with two numbers after the prefix, which `decode_started` returns."""

_TOLD_AT_START = struct.Struct("=8sdd")
STARTED_BYTES = _TOLD_AT_START.size

PREPARED, NOT_PREPARED, INLINE, IN_FILE, WITH_PROGRAM = b"prepared", b"!", b"=", b"#", b"+"
"""A session's packets, or their prefixes: the program is loaded, why it could not be, a text, the length of a text in
its file (none if that is the program), or the program. Anything else is JSON that says how a test failed."""

CANCELLED = (b"cancelled, unclean", b"cancelled")
"""A zygote's answer for a run that it has ended because the judge said so: only whether nothing was left behind. The
judge knows when that was, and what the run has used. A zygote that writes numbers would touch what its next copy has to
copy."""

ENDED = b"ended   "
"""Prefix of the packet that reports how a run ended. The packet lies in memory as it is sent (`worker.reap`)."""

_ENDED = struct.Struct("=8sii3d4qq104x")
"""`ENDED`, the wait status and whether the run was clean; its wall, starved and setup seconds; the kernel's rusage, of
which user time, system time (seconds and microseconds each) and the peak of memory are read."""

ENDED_BYTES = _ENDED.size
"""Length of that. If the zygote ended the run, the reason follows."""

RUSAGE_AT = 40
"""Offset of the rusage, in bytes."""
STATUS_AT, CLEAN_AT = 2, 3
"""The place of each integer, counted in integers."""
WALL_AT, STARVED_AT, SETUP_AT = 2, 3, 4
"""The place of each float, counted in floats."""

FOR_WALL = "wall:"
"""Prefix of the reason if a run was ended for the wall clock; the threads' states follow."""


class RunLimits(NamedTuple):
    """Limits of one run, in the units of its fields' names."""

    cpu_limit_s: float
    wall_limit_s: float
    """Without time in which others kept the run from running."""
    memory_limit_mb: int
    file_bytes: int


class Job(NamedTuple):
    """A run that the judge requests."""

    kind: str
    limits: RunLimits
    source_bytes: int = 0
    """Length of the source in the code descriptor."""
    name_bytes: int = 0
    """Length of the name of the function to call, after the source; 0 if there is none."""
    compiled_bytes: int = 0
    """Length of the code object after that, which an earlier runner stored and sealed; 0 if there is none."""
    preamble: bool = False
    """Whether the program finds the released reward's imports: in taco-compat, and if it is called as a function."""


class RunEnded(NamedTuple):
    """How a run ended, as seen by the zygote, which no program can reach."""

    wait_status: int
    """As wait(2) reports it."""
    cpu_s: float
    """User and system time of the whole process, without what confining it took."""
    wall_s: float
    """From fork to end."""
    starved_s: float
    """How much of that others kept it from running; 0 for runs shorter than a second."""
    max_rss_kb: int
    """Peak resident set, in KiB."""
    killed_for: str | None
    """cpu, wall or cancelled, if the zygote ended it."""
    clean: bool
    """Whether nothing was left behind; if not, the zygote must be replaced."""
    states: str = ""
    """States of its threads when it was ended for the wall clock: a letter each, as in /proc (S: it sleeps)."""

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
"""The fields of a Job. With a named tuple, a runner would touch more memory."""


def decode_job(packet: bytes) -> PlainJob:
    """Return the fields of the job in a packet."""
    kind, cpu, wall, memory, file, source, name, compiled, preamble = packet.decode().split(" ")
    limits = float(cpu), float(wall), int(memory), int(file)
    return kind, limits, int(source), int(name), int(compiled), preamble == "1"


def decode_started(packet: bytes) -> tuple[float, float]:
    """Return the runner's CPU time so far and the time (monotonic), both in s."""
    cpu_s, now = _TOLD_AT_START.unpack(packet)[1:]
    return cpu_s, now


def decode_ended(packet: bytes) -> RunEnded:
    """Return how a run ended; of a cancelled one only that is known. Raises ValueError for any other packet."""
    if packet in CANCELLED:
        return RunEnded(int(signal.SIGKILL), 0.0, 0.0, 0.0, 0, "cancelled", packet == CANCELLED[True])
    if len(packet) < ENDED_BYTES or not packet.startswith(ENDED):
        raise ValueError(f"{len(packet)} bytes that do not tell how a run ended")
    _, status, clean, wall_s, starved_s, setup_s, *cpu, rss = _ENDED.unpack_from(packet)
    cpu_s = cpu[0] + cpu[2] + (cpu[1] + cpu[3]) / 1e6 - setup_s
    killed, _, states = packet[ENDED_BYTES:].decode().partition(":")
    return RunEnded(status, max(0.0, cpu_s), wall_s, starved_s, rss, killed or None, clean == 1, states)
