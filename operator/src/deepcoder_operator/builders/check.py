"""Whether a run's objects can be built at all, found out before anything is made."""

from __future__ import annotations

from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_operator.builders.podtemplate import TemplateError
from deepcoder_operator.builders.pool import refuse_judge_template
from deepcoder_operator.builders.rayjob import build_rayjob
from deepcoder_operator.domain.names import attempt_name
from deepcoder_operator.domain.templates import template_problem
from deepcoder_operator.domain.world import Problem, parse_time


def check_templates(run: DeepCoderRun) -> Problem | None:
    """The first template that has not the form of one, or sets what the operator owns."""
    if problem := template_problem(run):
        return problem
    epoch = parse_time("1970-01-01T00:00:00Z")
    for index in range(len(run.spec.stages)):
        attempt = AttemptStatus(
            ordinal=1, stage_index=index, name=attempt_name(run.metadata.name, index, 1), intended_time=epoch
        )
        try:
            build_rayjob(run, attempt, "image", "config", s3_ca=False)
        except TemplateError as e:
            return Problem("TemplateRefused", str(e))
    if run.spec.sandbox.template is not None:
        try:
            refuse_judge_template(run.spec.sandbox.template.template, "spec.sandbox.template.template")
        except TemplateError as e:
            return Problem("TemplateRefused", str(e))
    return None
