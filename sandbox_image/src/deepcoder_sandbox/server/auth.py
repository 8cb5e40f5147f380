"""The bearer token on /v1: compared in constant time, read from a file, never logged.

Every path that is not listed as open needs the token. A server on a Unix socket of mode 0600 needs none: its mode
protects it.

The file is read again after a second, so that a rotated Secret needs no restart. Clients get their copies sooner or
later than this judge, so the previous token is accepted for another minute. If the file is missing or invalid for a
moment, for example while a mounted Secret is swapped, the token stays in force.
"""

from __future__ import annotations

import hmac
import logging
import time
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

_log = logging.getLogger("deepcoder_sandbox")

READ_AGAIN_S: Final = 1.0
"""Longest time in seconds for which a token is used without reading its file again."""

OLD_ACCEPTED_S: Final = 60.0
"""Seconds for which the previous token is accepted beside a new one."""

_MIN_TOKEN_CHARS = 16
_OPEN = frozenset({"/healthz", "/readyz", "/metrics"})


class BadToken(Exception):
    """The token file cannot be used."""


class Unauthorized(Exception):
    """The request does not have the token."""


class Token:
    """The token in a file that may be replaced. Used by one thread."""

    def __init__(self, path: Path) -> None:
        """Read the token. Raises BadToken."""
        self._path = path
        self._current = _read(path)
        self._read_at = time.monotonic()
        self._old: list[tuple[str, float]] = []
        """Previous tokens, each with the time (monotonic) until which it is accepted."""
        self._of_use = True

    def is_shown_by(self, given: str) -> bool:
        """Return whether `given` is the token, or one that was replaced recently."""
        now = time.monotonic()
        if now - self._read_at >= READ_AGAIN_S:
            self._read_at = now
            self._refresh(now)
        accepted = [self._current, *(token for token, until in self._old if until > now)]
        shown = given.encode("utf-8", "replace")
        return sum(hmac.compare_digest(shown, token.encode()) for token in accepted) > 0  # compares with all of them

    def _refresh(self, now: float) -> None:
        try:
            token = _read(self._path)
        except BadToken as bad:
            if self._of_use:  # logged once only
                _log.warning("%s: the token stays in force", bad)
            self._of_use = False
            return
        self._of_use = True
        if token == self._current:
            return
        _log.info("the token was replaced: the previous one is accepted for another %.0f s", OLD_ACCEPTED_S)
        self._old = [(old, until) for old, until in self._old if until > now]
        self._old.append((self._current, now + OLD_ACCEPTED_S))
        self._current = token


def _read(path: Path) -> str:
    """Return the token in a file. Raises BadToken."""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadToken(f"--token-file: cannot read {path}: {error}") from error
    if len(token) < _MIN_TOKEN_CHARS or not token.isascii() or any(char.isspace() for char in token):
        raise BadToken(f"--token-file: {path} needs one token of at least {_MIN_TOKEN_CHARS} ASCII characters")
    return token


def bearer(token: Token | None) -> Middleware:
    """Return a middleware that requires `token` before it reads anything of the body; None requires nothing."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token is not None and request.path not in _OPEN:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            if not token.is_shown_by(given.strip()) or scheme.lower() != "bearer":
                raise Unauthorized("Authorization: needs 'Bearer <token>' with the pool's token")
        return await handler(request)

    return check
