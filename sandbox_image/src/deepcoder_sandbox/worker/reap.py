"""Reaps a runner: wait4(2) writes status and resource usage directly into the packet for the judge.

Python would create objects for both, on many pages, and each page that the zygote touches after a fork is copied for
every test. So the zygote only adds a few numbers to what the kernel wrote, and the judge decodes everything.
"""

from __future__ import annotations

import ctypes

from deepcoder_sandbox.worker import packets
from deepcoder_sandbox.worker.libc import bare_wait4
from deepcoder_sandbox.worker.packets import STATUS_AT


class Reaped:
    """The packet of each run in turn. `packets` has the place of each number."""

    def __init__(self) -> None:
        self._memory = ctypes.create_string_buffer(packets.ENDED, packets.ENDED_BYTES)
        self.packet = memoryview(self._memory).cast("B")
        self.integers = self.packet.cast("i")
        self.floats = self.packet.cast("d")
        address = ctypes.addressof(self._memory)
        self._status_address = address + STATUS_AT * self.integers.itemsize
        self._usage_address = address + packets.RUSAGE_AT

    def reap(self, pid: int) -> int:
        """Wait for a process to end; return its wait status. Raises ChildProcessError if it is no child."""
        if bare_wait4(pid, self._status_address, 0, self._usage_address) != pid:
            raise ChildProcessError(f"{pid} is no child of the zygote")
        status: int = self.integers[STATUS_AT]
        return status

    def packet_of_killed(self, killed_for: str) -> bytes:
        """Return the packet of a runner that the zygote ended, with the reason."""
        return bytes(self.packet) + killed_for.encode()
