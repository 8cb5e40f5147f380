"""Progress and remaining time: a bar on a terminal, a line now and then elsewhere, a figure in a run."""

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
"""Seconds between lines where there is no terminal."""


class Phase(Protocol):
    """Something of which it is known how much there is; may be told from any thread."""

    def step(self) -> None:
        """One more is done."""

    def reach(self, done: int) -> None:
        """So many are done."""


class Display(Protocol):
    """Who is told."""

    def phase(self, name: str, total: int) -> Phase:
        """A phase of `total` steps."""


class Figures:
    """Tells how far each phase is, whenever that changes."""

    def __init__(self, told: Callable[[str, int, int], None]) -> None:
        """`told` is given a phase's name, what is done and what there is; from any thread, and it returns at once."""
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
    """Shows one phase after the other."""

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
            # By what came since the line before: what a journal knows goes by at once, and promises nothing.
            left = (now - self._told) / max(1, done - self._done_when_told) * (self._total - done)
            self._told, self._done_when_told = now, done
            log.info("%s: %d of %d, about %.0f s left", self._name, done, self._total, left)
