"""The bearer token on /v1: compared in constant time, read from a file, never logged.

A server on a Unix socket of mode 0600 needs none: the file's mode is the lock.
"""

from __future__ import annotations

import hmac
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from deepcoder_contracts.judge import Problem

_MIN_TOKEN_CHARS = 16


class BadToken(Exception):
    """The token file is of no use."""


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
    """Return a middleware that asks for `token` on /v1; None asks for nothing."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token is not None and request.path.startswith("/v1/"):
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            matches = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
            if scheme.lower() != "bearer" or not matches:
                problem = Problem(error="Authorization: needs 'Bearer <token>' with the pool's token", field=None)
                return web.json_response(
                    text=problem.model_dump_json(), status=401, headers={"WWW-Authenticate": "Bearer"}
                )
        return await handler(request)

    return check
