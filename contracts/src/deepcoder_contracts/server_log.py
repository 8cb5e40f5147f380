"""The log of our HTTP servers, without an error for each malformed request.

aiohttp logs a request that is not valid HTTP as an error with a traceback, and quotes the request. Anyone who can reach
a port could fill the log with such errors. Here each is one debug line that names the kind of the error. Errors of our
own handlers are logged as before.
"""

from __future__ import annotations

import logging

_SERVER = logging.getLogger("aiohttp.server")
_BODY = "aiohttp.web_protocol.RequestPayloadError"
"""Raised where a body is read; it is not one of aiohttp's `http_exceptions`."""


def server_log() -> logging.Logger:
    """Return the logger to pass to an aiohttp server."""
    _SERVER.addFilter(_keep)  # once: logging adds the same filter no second time
    return _SERVER


def _keep(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if not _is_malformed(error):
        return True
    record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
    record.msg, record.args, record.exc_info = f"malformed request: {type(error).__name__}", (), None
    return _SERVER.isEnabledFor(logging.DEBUG)


def _is_malformed(error: BaseException | None) -> bool:
    """Whether aiohttp could not read what a client sent. Told by name: not every part that imports us has aiohttp."""
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__]
    return any(name.startswith("aiohttp.http_exceptions.") or name == _BODY for name in names)
