"""Checks that CEL cannot make, before the operator creates anything in the cluster.

A run that is not accepted is checked again later, because its Secret or pool may appear. It requests no GPUs meanwhile.
Every message names the field and how to fix it.
"""

from __future__ import annotations

from deepcoder_contracts.api.run import MAX_NAME_LENGTH, DeepCoderRun
from deepcoder_contracts.api.run_status import CurrentStage, ProvenanceStatus, StageStatus
from deepcoder_contracts.run_checks import credentials_faults, dataset_faults, stage_faults
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
    if fault := next(dataset_faults(spec), None):
        return Problem(*fault)
    recipes = {s.name: s.recipe.over(spec.recipe) if s.recipe else spec.recipe for s in spec.stages}
    refusals = [r for s in spec.stages for r in stage_refusals(recipes[s.name], s, f"stages[{s.name}]")]
    if refusals:
        return Problem("NotSupported", "; ".join(r.message for r in refusals))
    if not (spec.image or policy.trainer_image):
        return Problem("ImageMissing", "spec.image is not set and the operator has no default: set spec.image")
    if fault := next(credentials_faults(spec), None):
        return Problem(*fault)
    if problem := template_problem(run):
        return problem
    return next((Problem(*fault) for stage in spec.stages for fault in stage_faults(spec, stage)), None)


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
