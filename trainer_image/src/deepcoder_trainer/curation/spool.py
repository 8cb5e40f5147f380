"""Holds records on disk until they are decided: an unnamed file, which disappears with the process."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from deepcoder_trainer.problems.record import Record

Span = tuple[int, int]
"""Offset and length in bytes."""


class Spool:
    """A temporary file of records with random access."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=1 << 20)  # noqa: SIM115  # closed by close()
        self._end = 0
        self._flushed = True

    def append(self, record: Record) -> Span:
        """Append a record and return its span. Raises UnicodeEncodeError for invalid Unicode."""
        line = record.line()
        span = (self._end, len(line))
        self._file.write(line)
        self._end += len(line)
        self._flushed = False
        return span

    def read(self, span: Span) -> Record:
        """Return the record at `span`."""
        if not self._flushed:
            self._file.flush()
            self._flushed = True
        offset, length = span
        return Record.of_line(os.pread(self._file.fileno(), length, offset))

    def close(self) -> None:
        """Close the file, which frees its space."""
        self._file.close()
