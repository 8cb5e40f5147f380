"""The first malformed template of a run, as a problem. Without this check, one could crash a pass."""

from __future__ import annotations

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.run_checks import template_faults
from deepcoder_operator.domain.world import Problem


def template_problem(run: DeepCoderRun) -> Problem | None:
    """Return what is wrong with the structure of a run's templates, or None."""
    return next((Problem(*fault) for fault in template_faults(run.spec)), None)
