"""The bearer token on /v1: compared in constant time, read from a file, never logged.

Whatever is not named open is locked. A server on a Unix socket of mode 0600 needs no token: its mode is the lock.

The file is looked at again once it was read a second ago, so that a rotated Secret needs no restart. Clients get their
copies sooner or later than this judge does: the token before goes on being accepted for a minute. A file that is away
or of no use for a moment, as while a mounted Secret is swapped, leaves the token in force.
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
"""Longest time for which a token is used without a look at its file."""

OLD_ACCEPTED_S: Final = 60.0
"""Seconds for which the token before is accepted beside a new one."""

_MIN_TOKEN_CHARS = 16
_OPEN = frozenset({"/healthz", "/readyz", "/metrics"})


class BadToken(Exception):
    """The token file is of no use."""


class Unauthorized(Exception):
    """The request does not show the token."""


class Token:
    """The token in a file that may be replaced. Used by one thread."""

    def __init__(self, path: Path) -> None:
        """Raises BadToken."""
        self._path = path
        self._current = _read(path)
        self._read_at = time.monotonic()
        self._old: list[tuple[str, float]] = []
        """Those before, each with the time up to which it is accepted."""
        self._of_use = True

    def is_shown_by(self, given: str) -> bool:
        """Whether `given` is the token, or one that it replaced lately."""
        now = time.monotonic()
        if now - self._read_at >= READ_AGAIN_S:
            self._read_at = now
            self._refresh(now)
        accepted = [self._current, *(token for token, until in self._old if until > now)]
        shown = given.encode("utf-8", "replace")
        return sum(hmac.compare_digest(shown, token.encode()) for token in accepted) > 0  # each of them is compared

    def _refresh(self, now: float) -> None:
        try:
            token = _read(self._path)
        except BadToken as bad:
            if self._of_use:  # once is enough
                _log.warning("%s: the token before stays in force", bad)
            self._of_use = False
            return
        self._of_use = True
        if token == self._current:
            return
        _log.info("the token was replaced: the one before is accepted for another %.0f s", OLD_ACCEPTED_S)
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
    """Return a middleware that asks for `token` before anything of the body is read; None asks for nothing."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token is not None and request.path not in _OPEN:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            if not token.is_shown_by(given.strip()) or scheme.lower() != "bearer":
                raise Unauthorized("Authorization: needs 'Bearer <token>' with the pool's token")
        return await handler(request)

    return check
