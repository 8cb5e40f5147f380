"""Waits for what is bound to come. A deadline only ends a test that would hang."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

WAIT_SECONDS = 120.0


async def until(holds: Callable[[], Any]) -> None:
    """Wait for something in this process."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not holds():
            await asyncio.sleep(0.01)


async def eventually(what: str, holds: Callable[[], Awaitable[bool]], seconds: float = WAIT_SECONDS) -> None:
    """Wait for something that has to be asked for, `what` in the failure."""
    try:
        async with asyncio.timeout(seconds):
            while not await holds():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None
