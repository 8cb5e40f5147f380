"""What ranks' answers to one call mean, and whether those that have not answered move anything.

A rank that died decides: the errors of the others are its consequences. Otherwise the first rank's error is raised, as
it was where it arose and not as Ray wraps it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from deepcoder_trainer.errors import LearnerLost


def errors_of(tasks: Sequence[asyncio.Future[Any]]) -> list[BaseException]:
    """Return the errors of finished tasks, in rank order."""
    ended = [task for task in tasks if task.done() and not task.cancelled()]
    return [error for task in ended if (error := task.exception()) is not None]


def died(errors: Iterable[BaseException]) -> RayActorError | None:
    """Return the error of a rank that died, if there is one."""
    return next((e for e in errors if isinstance(e, RayActorError)), None)


def answers_of(tasks: Sequence[asyncio.Future[Any]], what: str) -> list[Any]:
    """Return the results in rank order. Raises `LearnerLost` if a rank died, or else a rank's error."""
    errors = errors_of(tasks)
    if (death := died(errors)) is not None:
        raise LearnerLost(f"a learner rank died during {what}: {death}") from death
    for error in errors:
        raise error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) else error
    return [task.result() for task in tasks]


class Movement:
    """Since when each rank has moved no byte. A rank that does not say counts as one that moves nothing."""

    def __init__(self, ranks: int, now: float) -> None:
        self._seen: dict[int, tuple[int, float]] = dict.fromkeys(range(ranks), (-1, now))

    def look(self, counts: Mapping[int, int | None], now: float) -> None:
        """Take in how many bytes ranks have moved in all."""
        for rank, count in counts.items():
            if count is not None and count != self._seen[rank][0]:
                self._seen[rank] = (count, now)

    def idle(self, ranks: Iterable[int], now: float, longest: float) -> list[int]:
        """Return those of `ranks` that have moved nothing for `longest` seconds."""
        return [rank for rank in ranks if now - self._seen[rank][1] >= longest]
