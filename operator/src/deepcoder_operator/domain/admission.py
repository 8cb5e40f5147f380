"""Checks that CEL cannot make, before the operator creates anything in the cluster.

A run that is not accepted is checked again later, because its Secret or pool may appear. It requests no GPUs meanwhile.
Every message names the field and how to fix it.
"""

from __future__ import annotations

from deepcoder_contracts.api.run import MAX_NAME_LENGTH, DeepCoderRun
from deepcoder_contracts.api.run_status import CurrentStage, ProvenanceStatus, StageStatus
from deepcoder_contracts.api.stage import Stage, WorkerGroup
from deepcoder_contracts.curation import unprotected
from deepcoder_contracts.sizing import pod_gpus, pod_mig_devices
from deepcoder_contracts.stage import StageType
from deepcoder_contracts.stage_rules import unknown_targets
from deepcoder_contracts.supported import stage_refusals
from deepcoder_operator.domain.bounds import LONGEST_RECHECK_SECONDS, RECHECK_SECONDS
from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.domain.draft import Draft
from deepcoder_operator.domain.judge_outage import wait_for_judges
from deepcoder_operator.domain.policy import Policy
from deepcoder_operator.domain.resolve import resolve, storage_uri
from deepcoder_operator.domain.templates import template_problem
from deepcoder_operator.domain.world import Problem, World


def admit(draft: Draft, world: World, policy: Policy) -> bool:
    """Run all checks and set the condition Accepted. Returns False if the run has to wait."""
    problem = (
        check_spec(draft.run, policy)
        or world.refusal
        or _storage_problem(world)
        or _pool_problem(draft.run, world)
        or wait_for_judges(draft, world)
    )
    if problem is None:
        _accept(draft, world, policy)
        draft.condition("Accepted", True, "Valid", "the spec is valid, and its Secret, bucket and pool exist")
        return True
    refused(draft, problem)
    return False


def refused(draft: Draft, problem: Problem) -> None:
    """Report why the run waits, and schedule the next check after a quarter of the time waited, within bounds."""
    old = find_condition(draft.status.conditions, "Accepted")
    draft.condition("Accepted", False, problem.reason, problem.message)
    draft.progressing(False, problem.reason, problem.message)
    if old is None or (old.reason, old.status) != (problem.reason, "False"):
        draft.event(problem.reason, problem.message, warning=True)
    since = find_condition(draft.status.conditions, "Accepted")
    waited = (draft.now - since.last_transition_time).total_seconds() if since else 0.0
    draft.look_again(min(max(RECHECK_SECONDS, waited / 4), LONGEST_RECHECK_SECONDS))


def check_spec(run: DeepCoderRun, policy: Policy) -> Problem | None:
    """Return what is wrong with the spec itself, or None."""
    spec = run.spec
    if len(run.metadata.name) > MAX_NAME_LENGTH:
        return Problem("NameTooLong", f"metadata.name has more than {MAX_NAME_LENGTH} characters: shorten it")
    if spec.dataset and spec.dataset.curate:
        text = "dataset.curate is from an earlier release: make a new run and say how to curate in dataset.curation"
        return Problem("CurateNotSupported", text)
    if problem := _unprotected(run):
        return problem
    recipes = {s.name: s.recipe.over(spec.recipe) if s.recipe else spec.recipe for s in spec.stages}
    refusals = [r for s in spec.stages for r in stage_refusals(recipes[s.name], s, f"stages[{s.name}]")]
    if refusals:
        return Problem("NotSupported", "; ".join(r.message for r in refusals))
    if not (spec.image or policy.trainer_image):
        return Problem("ImageMissing", "spec.image is not set and the operator has no default: set spec.image")
    if spec.checkpoint.s3.credentials_secret_ref is None:
        return Problem("CredentialsMissing", "checkpoint.s3.credentialsSecretRef is not set: name a Secret")
    if problem := template_problem(run):
        return problem
    earlier: list[str] = []
    for stage in spec.stages:
        problem = _check_stage(run, stage, earlier)
        if problem:
            return problem
        if stage.type is StageType.TRAIN:
            earlier.append(stage.name)
    return None


def _unprotected(run: DeepCoderRun) -> Problem | None:
    """Return a problem if the run's curated training set is not checked against all of its evaluation sets."""
    curate = run.spec.dataset.curation if run.spec.dataset else None
    if curate is None:
        return None
    sets = ((d.name, d.uri) for s in run.spec.stages if s.evaluate for d in s.evaluate.datasets)
    if names := unprotected(curate, sets):
        return Problem(
            "EvaluationSetNotProtected",
            f"stages evaluate {', '.join(names)}, which dataset.curation.against does not name: the training set could "
            "contain the same problems; name each there with its uri (if the run has started: make a new run)",
        )
    return None


def _check_stage(run: DeepCoderRun, stage: Stage, earlier: list[str]) -> Problem | None:
    where = f"stages[{stage.name}]"
    if stage.recipe and (misfit := stage.recipe.misfit(run.spec.recipe)):
        return Problem("RecipeDoesNotFit", f"{where}.recipe: {misfit}")
    if stage.type is StageType.EVALUATE and stage.evaluate:
        if wrong := unknown_targets(stage.evaluate.targets, earlier):
            return Problem("UnknownTarget", f"{where}.{wrong}")
        if not stage.evaluate.targets and not earlier and run.spec.from_ is None:
            return Problem(
                "NothingToEvaluate", f"{where} has no earlier Train stage to evaluate: set evaluate.targets: [Base]"
            )
    recipe = run.spec.recipe
    for role, group, share, name in (
        ("samplers", stage.resources.samplers, recipe.tensor_parallel, "recipe.tensorParallel"),
        ("learners", stage.resources.learners, recipe.sequence_parallel, "recipe.sequenceParallel"),
    ):
        pod = (group.template.get("spec") or {}) if group else {}
        gpus = pod_gpus(pod)
        if pod.get("resourceClaims") and not gpus:
            return Problem(
                "ClaimedGPUsNotSupported",
                f"{where}.resources.{role} claims devices (resourceClaims) and requests no GPU: claimed GPUs are not "
                "supported, so the stage would compute on CPUs: request GPUs as a resource, for example nvidia.com/gpu",
            )
        if pod_mig_devices(pod) and gpus > 1:
            return Problem(
                "OneMIGDevice",
                f"{where}.resources.{role} requests {gpus} GPUs per pod, MIG devices among them, of which a process "
                "sees only one: request one per pod, and set replicas",
            )
        if gpus % share:
            return Problem(
                "GPUsDoNotDivide",
                f"{where}.resources.{role} has {gpus} GPUs per pod, not a multiple of {name} {share}: change either",
            )
    learners = stage.resources.learners or WorkerGroup()
    ranks = learners.replicas * max(1, pod_gpus(learners.template.get("spec") or {}))
    if stage.type is StageType.TRAIN and ranks % recipe.sequence_parallel:
        return Problem(
            "LearnersDoNotDivide",
            f"{where}.resources.learners has {ranks} ranks in total, not a multiple of recipe.sequenceParallel "
            f"{recipe.sequence_parallel}: change either",
        )
    return None


def _storage_problem(world: World) -> Problem | None:
    if world.storage is None:
        return Problem("StorageNotChecked", "the bucket has not been checked yet")
    return world.storage.problem


def _pool_problem(run: DeepCoderRun, world: World) -> Problem | None:
    reference = run.spec.sandbox.pool_ref
    if reference is None or world.pool is not None:
        return None
    return Problem(
        "PoolNotFound",
        f"sandbox.poolRef: there is no SandboxPool {reference.name} in namespace {run.metadata.namespace}: create it, "
        "or use sandbox.template",
    )


def _accept(draft: Draft, world: World, policy: Policy) -> None:
    """Resolve once what must never change, and create the stages' status entries."""
    run, status = draft.run, draft.status
    image = run.spec.image or policy.trainer_image
    if status.provenance is None or status.ordinal == 0:
        origin = world.storage.origin if world.storage else None
        model = run.spec.model
        draft.update(
            start_time=status.start_time or draft.now,
            provenance=ProvenanceStatus(
                config_digest=resolve(run, origin).digest,
                image=image,
                model=model.uri + (f"@{model.revision}" if model.revision else ""),
                dataset_sha256=run.spec.dataset.sha256 if run.spec.dataset else None,
                seed=run.spec.recipe.seed,
                from_=origin,
                storage=storage_uri(run),
                operator_version=policy.operator_version,
            ),
        )
    elif run.spec.image and status.provenance.image != image:
        draft.update(provenance=status.provenance.model_copy(update={"image": image}))
    lay_out_stages(draft)


def lay_out_stages(draft: Draft) -> None:
    """Keep one status entry per stage of the spec, in order. Entries of removed stages are dropped.

    If the run's current stage was removed, the last remaining one is shown: see `is_past_the_end`.
    """
    entries = {s.name: s for s in draft.status.stages}
    stages = []
    for i, s in enumerate(draft.run.spec.stages):
        entry = entries.get(s.name) or StageStatus(name=s.name, index=i)
        stages.append(entry if entry.index == i else entry.model_copy(update={"index": i}))
    index = min(draft.status.stage_index, len(stages) - 1)
    stage = draft.run.spec.stages[index]
    draft.update(
        stages=stages,
        current_stage=CurrentStage(
            name=stage.name, index=index, context_tokens=stage.context_tokens, ordinal=draft.status.ordinal
        ),
    )


def is_past_the_end(draft: Draft) -> bool:
    """Whether all remaining stages were removed from the spec. Stages that have started cannot be removed."""
    current = draft.status.current_stage
    return current is not None and current.index >= len(draft.run.spec.stages)
