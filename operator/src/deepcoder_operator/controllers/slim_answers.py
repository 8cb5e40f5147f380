"""Cuts runs that are too large out of what the API server answers kopf, before kopf parses it.

kopf holds each parsed run until its handler has taken it, so a list of the largest runs would take more than the
operator's memory (`kube.oversize`). An answer without such a run is passed on as it came.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp

from deepcoder_operator.kube.oversize import without_excess
from deepcoder_operator.kube.page import parse_page
from deepcoder_operator.kube.resources import RUNS

_SMALL_BYTES = 64 << 10
"""Answers and events up to this size are not looked into: parsed, they take two megabytes at most."""


async def slim_answers(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Have the body of an answer with runs read through `_Slim`."""
    response = await handler(request)
    if request.method == "GET" and response.status < 300 and request.url.path.endswith(f"/{RUNS.plural}"):
        response.content = cast(aiohttp.StreamReader, _Slim(response.content))
    return response


class _Slim:
    """A response's body whose pages and events have no run that is too large. The rest is the body's own."""

    def __init__(self, body: aiohttp.StreamReader) -> None:
        self._body = body

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    async def read(self, n: int = -1) -> bytes:
        """Return the whole body, which is a page of a list."""
        data = await self._body.read(n)
        return slim_page(data) if len(data) > _SMALL_BYTES else data

    async def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        """Yield the lines of a watch, each an event."""
        rest = b""
        async for chunk in self._body.iter_chunked(n):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield (slim_event(line) if len(line) > _SMALL_BYTES else line) + b"\n"
        if rest:
            yield rest


def slim_page(data: bytes) -> bytes:
    """Return a page without runs that are too large, or as it is."""
    cut = False

    def keep(run: dict[str, Any]) -> dict[str, Any]:
        nonlocal cut
        kept = _slim(run)
        cut = cut or kept is not run
        return kept

    try:
        page = parse_page(data, keep)
    except ValueError:
        return data  # kopf says what is wrong with it
    return json.dumps(page).encode() if cut else data


def slim_event(line: bytes) -> bytes:
    """Return an event without a run that is too large, or as it is."""
    try:
        event = json.loads(line)
        run = event["object"]
        kept = _slim(run)
    except (ValueError, LookupError, TypeError, AttributeError):
        return line
    return json.dumps(event | {"object": kept}).encode() if kept is not run else line


def _slim(run: dict[str, Any]) -> dict[str, Any]:
    kept = without_excess(run)
    if kept is run:
        return run
    metadata = {k: v for k, v in run["metadata"].items() if k not in ("managedFields", "annotations")}
    return {**kept, "metadata": metadata}
