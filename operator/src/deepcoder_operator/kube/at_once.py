"""Requests that do not depend on each other are made at the same time: a busy API server is waited for once.

An error is raised only when all of them have ended, so that nothing that an action began goes on after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def at_once(requests: Iterable[Awaitable[T]]) -> list[T]:
    """Return the results in order. Raises the error of the first that failed."""
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    raise_first(outcomes)
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


def raise_first(outcomes: Iterable[object]) -> None:
    """Raise the first error among the outcomes."""
    error = next((outcome for outcome in outcomes if isinstance(outcome, BaseException)), None)
    if error is not None:
        raise error
