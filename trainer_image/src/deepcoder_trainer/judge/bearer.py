"""The bearer token for a judge, read from a file that is replaced when the Secret is rotated.

The file is read again when the value is a second old, so a rotation needs no restart, and not every request reads the
file. If the file is missing or empty for a moment, as while a mounted Secret is swapped, the last value stays in use.
The value is in no message, log line or `repr`. `redact` removes it from the messages of others, because some APIs quote
the key that they refuse.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from deepcoder_trainer.errors import BadConfig

SECONDS = 1.0
"""Longest time for which a value is used before its file is read again."""

_VALUE = re.compile(r"[\x21-\x7e]+")
_QUOTED = 8
"""Characters at either end of a long secret that APIs may quote; these are redacted too."""
_SHORTEST = 4
"""A shorter token is not redacted, because it would match any text."""


class Bearer:
    """A bearer token in a file."""

    def __init__(self, path: Path, field: str) -> None:
        """`field` is the setting's name for messages. Raises BadConfig if the file has no token."""
        self._path = path
        self._field = field
        self._seen: list[str] = []
        self._read_at = time.monotonic()
        try:
            self._seen = [self._read()]
        except (OSError, ValueError) as error:
            raise BadConfig(
                f"{field} {path} cannot be used: {_why(error)}: mount the Secret that holds the token there",
                field=field,
            ) from None

    def __repr__(self) -> str:
        return f"<Bearer in {self._path}>"

    def header(self) -> str:
        """Return the value of the Authorization header."""
        now = time.monotonic()
        if now - self._read_at >= SECONDS:
            self._read_at = now
            self._refresh()
        return f"Bearer {self._seen[0]}"

    def redact(self, text: str) -> str:
        """Return the text without the token, the previous token, and quoted parts of either."""
        for secret in self._seen:
            parts = (secret, secret[:_QUOTED], secret[-_QUOTED:]) if len(secret) > 2 * _QUOTED else (secret,)
            for part in parts:
                text = text.replace(part, "[redacted]") if len(part) >= _SHORTEST else text
        return text

    def _refresh(self) -> None:
        try:
            value = self._read()
        except (OSError, ValueError):
            return
        if value != self._seen[0]:
            self._seen = [value, *self._seen][:2]

    def _read(self) -> str:
        value = self._path.read_text(errors="replace").strip()
        if not _VALUE.fullmatch(value):
            raise ValueError("it holds no token: one line of printable characters without spaces")
        return value


def _why(error: Exception) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
