"""How far it is, and when it will be done: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_EVERY_SECONDS = 30.0
"""Seconds between lines where there is no terminal."""


class Display:
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
        """A phase of `total` steps."""
        return Phase(self._bars, name, total, lines=not self._shown)


class Phase:
    """One bar."""

    def __init__(self, bars: Progress, name: str, total: int, *, lines: bool) -> None:
        self._bars, self._name, self._total, self._lines = bars, name, total, lines
        self._task = bars.add_task(name, total=total)
        self._began = self._told = time.monotonic()
        self._done = 0

    def step(self) -> None:
        """One more is done."""
        self.reach(self._done + 1)

    def reach(self, done: int) -> None:
        """So many are done."""
        if done == self._done:
            return
        self._done = done
        self._bars.update(self._task, completed=done)
        now = time.monotonic()
        if self._lines and now - self._told >= _EVERY_SECONDS:
            self._told = now
            left = (now - self._began) / done * (self._total - done)
            log.info("%s: %d of %d, about %.0f s left", self._name, done, self._total, left)
