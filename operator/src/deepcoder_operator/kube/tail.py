"""Reads the end of a stream that may be much longer than the part that is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable


async def tail(chunks: AsyncIterable[bytes], limit: int) -> bytes:
    """Return at most the last `limit` bytes, starting at the beginning of a line if one begins there.

    Never holds more than that and one chunk in memory.
    """
    kept: deque[bytes] = deque()
    size, cut = 0, False
    async for chunk in chunks:
        kept.append(chunk)
        size += len(chunk)
        while size - len(kept[0]) >= limit:
            size -= len(kept.popleft())
            cut = True
    data = b"".join(kept)
    cut = cut or len(data) > limit
    data = data[-limit:]
    return data[data.find(b"\n") + 1 :] if cut else data
