"""Checks whether a run's objects can be built, before anything is created."""

from __future__ import annotations

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.run_checks import refused_template_faults
from deepcoder_operator.domain.templates import template_problem
from deepcoder_operator.domain.world import Problem


def check_templates(run: DeepCoderRun) -> Problem | None:
    """Return a problem for the first template that is malformed or sets a field that it may not set."""
    if problem := template_problem(run):
        return problem
    return next((Problem(*fault) for fault in refused_template_faults(run.spec)), None)
