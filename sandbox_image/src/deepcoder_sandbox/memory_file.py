"""Anonymous files in memory: how texts cross to a program and back without passing through the zygote.

Their size is limited by the runner's file size limit, and their memory is gone with the last descriptor. A program that
holds one could seal it, after which the judge's own writes would fail: only a file made `sealable` can be sealed, and
such a one is out of reach before the program starts. Fails with OSError, as the system calls beneath do.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self


class MemoryFile:
    """A memory file that closes itself at the end of a with block."""

    def __init__(self, name: str, content: bytes = b"", sealable: bool = False) -> None:
        self._fd = os.memfd_create(name, os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if sealable else 0))
        try:
            self._write(content)
        except BaseException:
            os.close(self._fd)
            raise

    def _write(self, content: bytes) -> None:
        """Write at the start, leaving the offset there."""
        view, offset = memoryview(content), 0
        while offset < len(content):
            offset += os.pwrite(self._fd, view[offset:], offset)

    def fileno(self) -> int:
        """Its descriptor."""
        return self._fd

    def size(self) -> int:
        """Bytes in it now."""
        return os.fstat(self._fd).st_size

    def read(self, limit: int, offset: int = 0) -> bytes:
        """Return at most `limit` bytes from `offset`."""
        parts: list[bytes] = []
        while limit > 0:
            part = os.pread(self._fd, limit, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            limit -= len(part)
        return b"".join(parts)

    def replace(self, content: bytes) -> None:
        """Make it hold `content` and nothing else."""
        os.ftruncate(self._fd, 0)
        self._write(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
