"""Reading a request's body: bounded in size, in time and, over all requests together, in memory.

Refused with 400, 408, 413 and 429. A body that announces its length is refused before a byte of it is read; one that
does not, or that is compressed, as soon as it is too long. A slow client is not waited for, because others need its
share of the memory. A client that hangs up, or a body not encoded as its headers say, is no failure of the judge.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from deepcoder_sandbox.server.memory_budget import Share

READ_S: Final = 60.0
"""Seconds that a client may take to send a body."""


class TooLarge(Exception):
    """The body is longer than accepted."""


class TooSlow(Exception):
    """The body did not arrive in time."""


class Broken(Exception):
    """The body ended early, or is not encoded as its headers say."""


async def read_body(request: web.Request, share: Share, max_bytes: int) -> bytearray:
    """Return the body, whose size `share` holds. Raises TooLarge, TooSlow, Broken or OverBudget."""
    told = request.content_length
    if told is not None and told > max_bytes:
        raise TooLarge
    share.resize(told or 0)
    body = bytearray()
    try:
        async with asyncio.timeout(READ_S):
            async for chunk in request.content.iter_any():
                if len(body) + len(chunk) > max_bytes:
                    raise TooLarge
                body += chunk
                if len(body) > (told or 0):
                    share.resize(len(body))
    except TimeoutError:
        raise TooSlow from None
    except (web.RequestPayloadError, ConnectionError) as error:
        raise Broken(" ".join(str(error).split())) from None
    return body
