"""Checks of a run's spec that need nothing but the spec, and that CEL cannot make.

The operator makes them before it creates anything, and a plan before anything is applied: what a plan calls fitting
must not wait unaccepted in the cluster. Pure: a spec in, faults out. Each message names the field and how to fix it.
`template_faults` comes first, because all other checks of templates and of stages need their structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from deepcoder_contracts.api.run_spec import RunSpec
from deepcoder_contracts.api.stage import Stage, WorkerGroup
from deepcoder_contracts.curation import unprotected
from deepcoder_contracts.labels import HEAD, LEARNER, SAMPLER
from deepcoder_contracts.pod_template import malformed
from deepcoder_contracts.sizing import pod_gpus, pod_mig_devices
from deepcoder_contracts.stage import Placement, StageType
from deepcoder_contracts.stage_rules import unknown_targets
from deepcoder_contracts.template_refusals import GROUPS, refused_of_judge, refused_of_run


class Fault(NamedTuple):
    """Why a run cannot be accepted."""

    reason: str
    """CamelCase reason of the condition Accepted."""

    message: str
    """Field, value, and how to fix it."""


def template_faults(spec: RunSpec) -> Iterator[Fault]:
    """Yield a fault for each template that is malformed or far too large."""
    found = [
        (f"spec.stages[{stage.name}].resources.{role}.template", group.template)
        for stage in spec.stages
        for role in ("head", "samplers", "learners")
        if (group := getattr(stage.resources, role)) is not None
    ]
    if spec.sandbox.template is not None:
        found.append(("spec.sandbox.template.template", spec.sandbox.template.template))
    messages = (malformed(template, where) for where, template in found)
    yield from (Fault("TemplateMalformed", message) for message in messages if message)


def refused_template_faults(spec: RunSpec) -> Iterator[Fault]:
    """Yield a fault for each well-formed template of a pod of the run that sets a field that it may not set."""
    for stage in spec.stages:
        for role in (HEAD, *_workers(stage)):
            group = getattr(stage.resources, GROUPS[role])
            if group is not None and (message := refused_of_run(group.template, stage.name, role)):
                yield Fault("TemplateRefused", message)
    if spec.sandbox.template is not None:
        where = "spec.sandbox.template.template"
        if message := refused_of_judge(spec.sandbox.template.template, where):
            yield Fault("TemplateRefused", message)


def _workers(stage: Stage) -> Sequence[str]:
    if stage.placement is Placement.COLOCATED:
        return (LEARNER,)
    return (SAMPLER, LEARNER) if stage.type is StageType.TRAIN else (SAMPLER,)


def dataset_faults(spec: RunSpec) -> Iterator[Fault]:
    """Yield faults of how the training set is made: it must be checked against all of the run's evaluation sets."""
    if spec.dataset and spec.dataset.curate:
        text = "dataset.curate is from an earlier release: make a new run and say how to curate in dataset.curation"
        yield Fault("CurateNotSupported", text)
    if spec.dataset is None or spec.dataset.curation is None:
        return
    sets = ((d.name, d.uri) for s in spec.stages if s.evaluate for d in s.evaluate.datasets)
    if names := unprotected(spec.dataset.curation, sets):
        yield Fault(
            "EvaluationSetNotProtected",
            f"stages evaluate {', '.join(names)}, which dataset.curation.against does not name: the training set could "
            "contain the same problems; name each there with its uri (if the run has started: make a new run)",
        )


def credentials_faults(spec: RunSpec) -> Iterator[Fault]:
    """Yield a fault if no Secret with the bucket's keys is named."""
    if spec.checkpoint.s3.credentials_secret_ref is None:
        yield Fault("CredentialsMissing", "checkpoint.s3.credentialsSecretRef is not set: name a Secret")


def stage_faults(spec: RunSpec, stage: Stage) -> Iterator[Fault]:
    """Yield faults of a stage of a run whose templates are well-formed."""
    where, recipe = f"stages[{stage.name}]", spec.recipe
    if stage.recipe and (misfit := stage.recipe.misfit(recipe)):
        yield Fault("RecipeDoesNotFit", f"{where}.recipe: {misfit}")
    if stage.type is StageType.EVALUATE and stage.evaluate:
        yield from _target_faults(spec, stage, where)
    for role, group, share, name in (
        ("samplers", stage.resources.samplers, recipe.tensor_parallel, "recipe.tensorParallel"),
        ("learners", stage.resources.learners, recipe.sequence_parallel, "recipe.sequenceParallel"),
    ):
        if group is not None:
            yield from _device_faults(group, share, name, f"{where}.resources.{role}")
    learners = stage.resources.learners or WorkerGroup()
    ranks = learners.replicas * max(1, pod_gpus(learners.template.get("spec") or {}))
    if stage.type is StageType.TRAIN and ranks % recipe.sequence_parallel:
        yield Fault(
            "LearnersDoNotDivide",
            f"{where}.resources.learners has {ranks} ranks in total, not a multiple of recipe.sequenceParallel "
            f"{recipe.sequence_parallel}: change either",
        )


def _target_faults(spec: RunSpec, stage: Stage, where: str) -> Iterator[Fault]:
    targets: Sequence[str] = stage.evaluate.targets if stage.evaluate else ()
    before = spec.stages[: [s.name for s in spec.stages].index(stage.name)]
    earlier = [s.name for s in before if s.type is StageType.TRAIN]
    if wrong := unknown_targets(targets, earlier):
        yield Fault("UnknownTarget", f"{where}.{wrong}")
    elif not targets and not earlier and spec.from_ is None:
        yield Fault(
            "NothingToEvaluate", f"{where} has no earlier Train stage to evaluate: set evaluate.targets: [Base]"
        )


def _device_faults(group: WorkerGroup, share: int, name: str, where: str) -> Iterator[Fault]:
    """Yield faults of the devices of a group's pods. `share` GPUs work together, as the setting `name` says."""
    pod = group.template.get("spec") or {}
    gpus = pod_gpus(pod)
    if pod.get("resourceClaims") and not gpus:
        yield Fault(
            "ClaimedGPUsNotSupported",
            f"{where} claims devices (resourceClaims) and requests no GPU: claimed GPUs are not supported, so the "
            "stage would compute on CPUs: request GPUs as a resource, for example nvidia.com/gpu",
        )
    if pod_mig_devices(pod) and gpus > 1:
        yield Fault(
            "OneMIGDevice",
            f"{where} requests {gpus} GPUs per pod, MIG devices among them, of which a process sees only one: request "
            "one per pod, and set replicas",
        )
    elif gpus % share:
        yield Fault(
            "GPUsDoNotDivide", f"{where} has {gpus} GPUs per pod, not a multiple of {name} {share}: change either"
        )
