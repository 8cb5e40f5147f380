"""Measures how long each part of the demo takes, including parts that run in parallel.

The demo promises a total time, so it must show which part took it. Parallel parts are marked, because the times then do
not add up to the total.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Part:
    """A finished part."""

    name: str
    seconds: float
    beside: bool
    """Whether it ran at the same time as others."""


class Stopwatch:
    """Collects parts; safe to use from several threads."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.parts: list[Part] = []
        self._lock = threading.Lock()
        self._start = time.monotonic()

    @contextmanager
    def part(self, name: str, *, beside: bool = False) -> Iterator[None]:
        """Time a part; it is recorded even if it fails."""
        start = time.monotonic()
        if not beside:
            self.console.rule(f"[bold]{name}", align="left")
        try:
            yield
        finally:
            with self._lock:
                self.parts.append(Part(name, time.monotonic() - start, beside))

    def table(self) -> Table:
        """All parts in the order in which they ended, and the total."""
        table = Table(title="Time of each part", title_justify="left", box=None)
        table.add_column("part")
        table.add_column("seconds", justify="right")
        for part in self.parts:
            table.add_row(part.name + (" (beside others)" if part.beside else ""), f"{part.seconds:.0f}")
        table.add_section()
        table.add_row("total", f"{time.monotonic() - self._start:.0f}")
        return table
