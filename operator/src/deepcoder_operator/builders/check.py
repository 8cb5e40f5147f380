"""Checks whether a run's objects can be built, before anything is created."""

from __future__ import annotations

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_operator.builders.podtemplate import TemplateError
from deepcoder_operator.builders.pool import refuse_judge_template
from deepcoder_operator.builders.rayjob import refuse_templates
from deepcoder_operator.domain.templates import template_problem
from deepcoder_operator.domain.world import Problem


def check_templates(run: DeepCoderRun) -> Problem | None:
    """Return a problem for the first template that is malformed or sets a field that the operator owns."""
    if problem := template_problem(run):
        return problem
    for stage in run.spec.stages:
        try:
            refuse_templates(run, stage)
        except TemplateError as e:
            return Problem("TemplateRefused", str(e))
    if run.spec.sandbox.template is not None:
        try:
            refuse_judge_template(run.spec.sandbox.template.template, "spec.sandbox.template.template")
        except TemplateError as e:
            return Problem("TemplateRefused", str(e))
    return None
