"""The end of a stream that may be far longer than what is kept of it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable


async def tail(chunks: AsyncIterable[bytes], limit: int) -> bytes:
    """The last `limit` bytes at most, from a line's beginning on where a line begins in them; no more is ever held
    than that and a chunk."""
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
