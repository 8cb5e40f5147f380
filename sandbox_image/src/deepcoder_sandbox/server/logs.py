"""Structured logs: one JSON object per line, for machines; plain lines on a terminal.

Messages are escaped and truncated, so text of a program, a client or a library can neither forge a line nor fill a disk
with one. Formatting does not fail: what cannot be shown is left out.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

MAX_CHARS: Final = 2000
"""Maximum characters of a message or a traceback in one line. Of a traceback the end is kept, which says more."""

_EXTRA = ("submission", "scoring")


def shown(text: str) -> str:
    """Return the text in printable ASCII, truncated."""
    escaped = "".join(
        each if " " <= each <= "~" else each.encode("unicode_escape").decode() for each in text[:MAX_CHARS]
    )
    return escaped[:MAX_CHARS]


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shown(record.getMessage()),
        }
        line |= {name: shown(str(vars(record)[name])) for name in _EXTRA if name in vars(record)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-MAX_CHARS:]
        return json.dumps(line)


class PlainFormatter(logging.Formatter):
    """Formats a record as a line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line, without the traceback that may follow."""
        record.message = shown(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """Return the end of the traceback, escaped, and indented so that no line of it can pass for a record."""
        return "\n".join(f"  {shown(line)}" for line in super().formatException(ei)[-MAX_CHARS:].splitlines())


def configure() -> None:
    """Log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter() if sys.stderr.isatty() else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
