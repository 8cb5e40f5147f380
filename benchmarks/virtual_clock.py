"""An event loop whose clock jumps to whatever comes next: hours of waiting pass in the time that their work takes.

What a thread would do is done at once and answered a moment later, so that nothing depends on the machine: a program
that takes its chances from seeds does the same in every run. When nothing is left that could ever happen, waiting would
be for ever, and `Deadlock` is raised instead.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

THREAD_SECONDS = 0.001
"""How long what a thread does seems to take."""


class Deadlock(RuntimeError):
    """Everybody waits, and nothing is left that could wake them."""


class VirtualClock(asyncio.SelectorEventLoop):
    """See the module's text."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Seconds since the loop began."""
        return self._now

    def jump(self, seconds: float | None) -> None:
        """Let time pass; None: there is nothing to wait for."""
        if seconds is None:
            raise Deadlock("everybody waits, and nothing is left that could wake them")
        self._now += seconds

    def run_in_executor(self, _executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """The function's result, called here."""
        future: asyncio.Future[T] = self.create_future()
        try:
            result = func(*args)
        except Exception as error:
            self.call_later(THREAD_SECONDS, _settle, future, None, error)
        else:
            self.call_later(THREAD_SECONDS, _settle, future, result, None)
        return future


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events and (timeout is None or timeout > 0):
            self._clock.jump(timeout)
        return events


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """The result of `main`, on a clock of its own."""
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(main)
