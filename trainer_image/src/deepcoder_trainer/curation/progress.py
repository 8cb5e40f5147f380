"""Reports progress: a bar on a terminal, otherwise a log line now and then; in a run, figures for the observers."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_EVERY_SECONDS = 30.0
"""Seconds between log lines if there is no terminal."""


class Phase(Protocol):
    """A phase with a known number of steps. Its methods may be called from any thread."""

    def step(self) -> None:
        """Report one more step."""

    def reach(self, done: int) -> None:
        """Report the number of steps done so far."""


class Display(Protocol):
    """Shows the progress of phases."""

    def phase(self, name: str, total: int) -> Phase:
        """Start a phase of `total` steps."""


class Figures:
    """Passes on the progress of each phase whenever it changes."""

    def __init__(self, told: Callable[[str, int, int], None]) -> None:
        """`told` receives name, steps done, and total of a phase. It is called from any thread and must not block."""
        self._told = told

    def phase(self, name: str, total: int) -> Phase:
        """See `Display`."""
        log.info("curation: %s", name)
        return _Figure(self._told, name, total)


class _Figure:
    def __init__(self, told: Callable[[str, int, int], None], name: str, total: int) -> None:
        self._told, self._name, self._total, self._done = told, name, total, 0
        told(name, 0, total)

    def step(self) -> None:
        self.reach(self._done + 1)

    def reach(self, done: int) -> None:
        self._done = done
        self._told(self._name, done, self._total)


class Terminal:
    """Shows one bar per phase on stderr, or log lines if stderr is not a terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self._shown,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def phase(self, name: str, total: int) -> Phase:
        """See `Display`."""
        return _Bar(self._bars, name, total, lines=not self._shown)


class _Bar:
    def __init__(self, bars: Progress, name: str, total: int, *, lines: bool) -> None:
        self._bars, self._name, self._total, self._lines = bars, name, total, lines
        self._task = bars.add_task(name, total=total)
        self._told = time.monotonic()
        self._done = self._done_when_told = 0

    def step(self) -> None:
        self.reach(self._done + 1)

    def reach(self, done: int) -> None:
        if done == self._done:
            return
        self._done = done
        self._bars.update(self._task, completed=done)
        now = time.monotonic()
        if self._lines and now - self._told >= _EVERY_SECONDS:
            # Estimated from the steps since the last line: steps that a journal answers are fast and say nothing.
            left = (now - self._told) / max(1, done - self._done_when_told) * (self._total - done)
            self._told, self._done_when_told = now, done
            log.info("%s: %d of %d, about %.0f s left", self._name, done, self._total, left)
