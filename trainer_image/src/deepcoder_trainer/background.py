"""Background work beside training: loops and checks, and functions that block a thread for minutes.

If a loop fails, the attempt ends, because it cannot go on without, for example, its judges. All loops are cancelled and
awaited at the end. A function that cannot be cancelled (a download, a custom reward) runs in a thread that nothing
waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """The background tasks of one attempt."""

    def __init__(self) -> None:
        self._loops: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self._failure: BaseException | None = None

    def loop(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until the attempt ends. Tasks may be added at any time."""
        task = asyncio.create_task(work)
        self._loops.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            self._failed.set()

    async def beside(self, main: Coroutine[Any, Any, T], on_failure: Callable[[BaseException], None]) -> T:
        """Run `main` and return its result.

        `on_failure` is called with the error of the first background task that fails meanwhile. It must make `main`
        end, which knows how to save its work.
        """
        task = asyncio.create_task(main)
        failing = asyncio.create_task(self._failed.wait())
        try:
            await asyncio.wait({task, failing}, return_when=asyncio.FIRST_COMPLETED)
            if self._failure is not None and not task.done():
                on_failure(self._failure)
            return await task
        finally:
            task.cancel()
            failing.cancel()
            await asyncio.gather(task, failing, return_exceptions=True)

    async def close(self) -> None:
        """Cancel the tasks, and wait for them."""
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)


def first_cause(error: BaseException) -> BaseException:
    """Return the first error inside nested exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def abandonable(function: Callable[..., T], *args: Any) -> T:
    """Run `function` in a daemon thread and return its result. If the caller is cancelled, the thread is abandoned."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = function(*args)
        except BaseException as raised:  # every error is passed to the caller
            # SystemExit in the function is a failure that ends only the function; a future accepts no StopIteration.
            error = raised
            if not isinstance(raised, Exception) or isinstance(raised, StopIteration):
                error = RuntimeError(repr(raised))
                error.__cause__ = raised  # keeps the traceback
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing waits for the result
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name=getattr(function, "__name__", "work"), daemon=True).start()
    return await future
