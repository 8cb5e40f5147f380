"""Describes what the tasks of an attempt wait for, when the attempt is given up as stalled.

The trainer is one event loop with tasks that wait for samplers, learners, judges and storage. A task's own stack ends
in the outermost coroutine, not where it waits, so each task is followed through what it awaits. If the event loop
itself is blocked, nothing is reported, because then no reply of the operator is read either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST_TASKS = 40
MOST_FRAMES = 12
"""Largest number of frames per task, from the innermost outwards."""


def waits(tasks: Iterable[asyncio.Task[Any]]) -> list[str]:
    """Return a line for each place at which tasks wait, with their number and one task's name; most tasks first."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        found.setdefault(" < ".join(reversed(_frames(task.get_coro())[-MOST_FRAMES:])), []).append(task.get_name())
    lines = sorted(found.items(), key=lambda item: -len(item[1]))
    return [f"{len(names)} × {names[0]}: {where}" for where, names in lines if where][:MOST_TASKS]


def _frames(awaited: Any) -> list[str]:
    """Return the frames of a coroutine and everything that it awaits, the innermost last."""
    frames = []
    while awaited is not None:
        frame = (
            getattr(awaited, "cr_frame", None)
            or getattr(awaited, "gi_frame", None)
            or getattr(awaited, "ag_frame", None)
        )
        if frame is not None:
            code = frame.f_code
            frames.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
        awaited = (
            getattr(awaited, "cr_await", None)
            or getattr(awaited, "gi_yieldfrom", None)
            or getattr(awaited, "ag_await", None)
        )
    return frames
