"""The bearer token on /v1: compared in constant time, read from a file, never logged.

Whatever is not named open is locked. A server on a Unix socket of mode 0600 needs no token: its mode is the lock.
"""

from __future__ import annotations

import hmac
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

_MIN_TOKEN_CHARS = 16
_OPEN = frozenset({"/healthz", "/readyz", "/metrics"})


class BadToken(Exception):
    """The token file is of no use."""


class Unauthorized(Exception):
    """The request does not show the token."""


def read_token(path: Path) -> str:
    """Return the token in a file. Raises BadToken."""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadToken(f"--token-file: cannot read {path}: {error}") from error
    if len(token) < _MIN_TOKEN_CHARS or not token.isascii() or any(char.isspace() for char in token):
        raise BadToken(f"--token-file: {path} needs one token of at least {_MIN_TOKEN_CHARS} ASCII characters")
    return token


def bearer(token: str | None) -> Middleware:
    """Return a middleware that asks for `token` before anything of the body is read; None asks for nothing."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token is not None and request.path not in _OPEN:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            matches = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
            if scheme.lower() != "bearer" or not matches:
                raise Unauthorized("Authorization: needs 'Bearer <token>' with the pool's token")
        return await handler(request)

    return check
