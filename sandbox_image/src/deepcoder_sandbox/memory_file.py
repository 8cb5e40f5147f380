"""Anonymous files in memory, which carry texts to a program and back without passing through the zygote.

Their memory does not count towards a program's memory limit, so each file has its own bound: a `capacity` that seals
enforce, or the runner's file size limit. The memory is freed with the last descriptor. A program that holds a file
could seal it, and the judge's own writes would then fail. So only a `sealable` file can be sealed by others, and the
program never holds such a file: the runner closes it before. Raises OSError, as the system calls do.
"""

from __future__ import annotations

import fcntl
import os
from types import TracebackType
from typing import Self

_FIXED_SIZE = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class MemoryFile:
    """A memory file that is closed at the end of a with block.

    With a `capacity`, nobody can change its size, and its offset shows how much was written.
    """

    def __init__(self, name: str, content: bytes = b"", *, sealable: bool = False, capacity: int | None = None) -> None:
        flags = os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if sealable or capacity is not None else 0)
        self._fd = os.memfd_create(name, flags)
        try:
            if capacity is not None:
                os.ftruncate(self._fd, capacity)
                fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _FIXED_SIZE)
            self._write(content)
        except BaseException:
            os.close(self._fd)
            raise

    def _write(self, content: bytes, at: int = 0) -> None:
        """Write without moving the offset."""
        view, offset = memoryview(content), 0
        while offset < len(content):
            offset += os.pwrite(self._fd, view[offset:], at + offset)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def size(self) -> int:
        """Return the current size in bytes."""
        return os.fstat(self._fd).st_size

    def sealed(self) -> bool:
        """Return whether nobody can write to it any more."""
        return bool(fcntl.fcntl(self._fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE)

    def written(self) -> int:
        """Return the offset, which the program shares: the end of what it wrote, if it is honest."""
        at = os.lseek(self._fd, 0, os.SEEK_CUR)
        return min(at, self.size()) if at else 0

    def read(self, limit: int, offset: int = 0) -> bytes:
        """Return at most `limit` bytes from `offset`."""
        return self.content(min(limit, self.size() - offset), offset)

    def content(self, length: int, offset: int = 0) -> bytes:
        """Return `length` bytes from `offset`; fewer if the file is shorter. Memory is allocated for all at once."""
        content = os.pread(self._fd, length, offset) if length > 0 else b""
        while len(content) < length:  # the kernel reads less than 2 GiB at a time
            part = os.pread(self._fd, length - len(content), offset + len(content))
            if not part:
                break
            content += part
        return content

    def overwrite(self, content: bytes, at: int) -> None:
        """Write `content` at an offset; the rest stays as it is."""
        self._write(content, at)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
