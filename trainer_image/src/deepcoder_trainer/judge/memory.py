"""Refuses problems that ask for more memory than the run's judges allow, before programs for them are sampled.

A judge refuses each program of such a problem, which ends the attempt, perhaps hours after the start.
"""

from __future__ import annotations

from collections.abc import Iterable

from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.types import Problem


def refuse_above(most_mb: int | None, problems: Iterable[Problem], field: str) -> None:
    """Raise BadConfig for the set at `field` if problems need more than `most_mb` MiB. None: no bound is known."""
    if most_mb is None:
        return
    coded = (problem for problem in problems if problem.answer is None)  # answers are compared without a judge
    above = [problem for problem in coded if problem.memory_limit_mb > most_mb]
    if above:
        raise BadConfig(
            f"{field}: the run's judges allow a program {most_mb} MiB, and {len(above)} problems ask for more, the "
            f"first of them {above[0].id} (memory_limit_mb {above[0].memory_limit_mb}): lower memory_limit_mb in these "
            "rows, or give the judges more memory (`resources` of the judge in the pool's `template`; in a local run, "
            "the container's memory)",
            field=field,
        )
