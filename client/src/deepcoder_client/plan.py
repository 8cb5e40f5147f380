"""Estimates what a run would need before it is applied: GPUs, memory and cost of each stage, from sizes alone.

The arithmetic is the trainer's own (`deepcoder_contracts.learner_memory`). No part of it was measured on a GPU, so a
plan that leaves a few GB free is only a starting point. The cost needs a price list, and the total cost needs the
seconds per step, which only an earlier run can tell; without them, only the cost per hour is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcoder_client.errors import BadFile
from deepcoder_client.manifests import RunManifest
from deepcoder_client.prices import Price, per_gpu_hour
from deepcoder_client.settings import GPU_GB
from deepcoder_contracts.api.run_spec import RunSpec
from deepcoder_contracts.api.stage import Stage, WorkerGroup
from deepcoder_contracts.fit import length_refusals, rank_refusals, tp_refusals
from deepcoder_contracts.learner_memory import (
    COLOCATED_SHARE,
    GB,
    MEMORY_SHARE,
    checkpoint_bytes,
    export_memory,
    learner_memory,
    sequences_at_once,
)
from deepcoder_contracts.model_shape import KNOWN, ModelShape, parameters, rope_entries
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.run_checks import (
    Fault,
    credentials_faults,
    dataset_faults,
    refused_template_faults,
    stage_faults,
    template_faults,
)
from deepcoder_contracts.sizing import pod_gpus, processes
from deepcoder_contracts.spec_bounds import excess_of
from deepcoder_contracts.stage import Placement, StageType
from deepcoder_contracts.supported import model_refusals, quantized_refusals, stage_refusals


@dataclass(frozen=True)
class Given:
    """Inputs of a plan besides the file."""

    gpu_gb: float = GPU_GB
    prices: Sequence[Price] = ()
    step_seconds: Mapping[str, float] | None = None
    """Seconds per step by stage; `""` applies to all other stages."""


DEFAULTS = Given()


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage."""

    name: str
    type: str
    context_tokens: int
    max_steps: int | None
    gpus: int
    """Number of GPUs of all the stage's pods."""
    engines: int
    learners: int
    learner_gb: float | None
    """Peak memory of one learner in GB; None if nothing is trained, or if the model's sizes are unknown."""
    sequences: int | None
    """Number of sequences of full length that one engine holds at once; None without GPUs or sizes."""
    per_hour: float | None
    """Cost of the stage's GPUs per hour; None unless each has a price."""
    hours: float | None
    cost: float | None
    at_most: float | None
    """Cost until activeDeadlineSeconds ends the stage; None without a deadline or a price."""
    problems: tuple[str, ...]
    """Why the stage cannot work as configured, and what to change."""


@dataclass(frozen=True)
class RunPlan:
    """The plan of a whole run."""

    name: str
    model: str
    parameters: float | None
    """Number of parameters; None if the model's sizes are unknown."""
    checkpoint_gb: float | None
    export_gb: float | None
    """Host memory of the first learner in GB at the end of a stage, while its export is written and compared; None
    without sizes, or if nothing is trained."""
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...]
    """What could not be computed, and which input is missing."""

    problems: tuple[str, ...] = ()
    """Why the run as a whole cannot work as configured, and what to change."""

    @property
    def gpus(self) -> int:
        """Largest number of GPUs in use at once; stages run one after the other."""
        return max(stage.gpus for stage in self.stages)

    @property
    def cost(self) -> float | None:
        """Cost of all stages with GPUs; None unless each is known."""
        costs = [stage.cost for stage in self.stages if stage.gpus]
        return sum(cost for cost in costs if cost is not None) if costs and None not in costs else None

    @property
    def fits(self) -> bool:
        """True if neither the run nor a stage has a known problem."""
        return not self.problems and not any(stage.problems for stage in self.stages)


def read_model_config(path: str | Path) -> dict[str, Any]:
    """Read a model's config.json. Raises `BadFile`."""
    try:
        config = json.loads(Path(path).read_bytes())
        ModelShape.of(config)
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadFile(f"{path}: {error}: give a model's complete config.json in Hugging Face layout") from None
    return dict(config)


def plan(manifest: RunManifest, given: Given = DEFAULTS, model_config: Mapping[str, Any] | None = None) -> RunPlan:
    """Plan a run. `model_config` is the model's config.json; models of the published recipe do not need it.

    Raises `BadFile` if a pod template is malformed: it does not say what its pods request.
    """
    spec = manifest.spec
    if wrong := [fault.message for fault in template_faults(spec)]:
        raise BadFile("\n".join(f"{manifest.metadata.name}: {message}" for message in wrong))
    config = model_config or KNOWN.get(spec.model.uri)
    notes = []
    if config is None:
        notes.append(
            f"memory: the sizes of {spec.model.uri} are not known here, give its config.json with --model-config"
        )
    if not given.prices:
        notes.append("cost: give a price list with --prices, or one price for all with --gpu-hour")
    elif not given.step_seconds:
        notes.append("total cost: give the duration of a step, from an earlier run's metrics, with --step-seconds")
    if config is not None:
        notes.append("memory is estimated from sizes: memory_peak_bytes of the first step has the true value")
    shape = ModelShape.of(config) if config else None
    trains = any(stage.type is StageType.TRAIN for stage in spec.stages)
    return RunPlan(
        name=manifest.metadata.name,
        model=spec.model.uri,
        parameters=float(parameters(shape)) if shape else None,
        checkpoint_gb=checkpoint_bytes(shape) / GB if shape else None,
        export_gb=export_memory(shape, spec.recipe).most / GB if shape and trains else None,
        stages=tuple(_stage(manifest, stage, given, config) for stage in spec.stages),
        notes=tuple(notes),
        problems=tuple(_run_problems(manifest, config)),
    )


def _run_problems(manifest: RunManifest, config: Mapping[str, Any] | None) -> Iterator[str]:
    spec = manifest.spec
    yield from (fault.message for fault in _faults(spec))
    if config is not None:
        yield from (r.message for r in model_refusals(config))
        yield from (r.message for r in quantized_refusals(config, spec.model.uri))


def _faults(spec: RunSpec) -> Iterator[Fault]:
    """Yield why the operator would not accept the run, in its words."""
    if excess := excess_of(spec.model_dump(mode="json", by_alias=True, exclude_unset=True)):
        yield Fault("SpecUnreadable", excess)
    yield from refused_template_faults(spec)
    yield from dataset_faults(spec)
    yield from credentials_faults(spec)


def _stage(manifest: RunManifest, stage: Stage, given: Given, config: Mapping[str, Any] | None) -> StagePlan:
    recipe = stage.recipe.over(manifest.spec.recipe) if stage.recipe else manifest.spec.recipe
    engines, learners = processes(stage, recipe.tensor_parallel)
    groups = _groups(stage)
    gpus = sum(group.replicas * pod_gpus(group.template.get("spec") or {}) for group in groups)
    colocated = stage.placement is Placement.COLOCATED
    problems = [fault.message for fault in stage_faults(manifest.spec, stage)]
    problems += [r.message for r in stage_refusals(recipe, stage, f"stages[{stage.name}]")]
    learner_gb = sequences = None
    if config is not None:
        shape = ModelShape.of(config)
        problems += _misfits(stage, recipe, config, learners)
        if stage.type is StageType.TRAIN:
            memory = learner_memory(shape, recipe, learners, stage.context_tokens, colocated=colocated)
            learner_gb = memory.total / GB
        if gpus:
            longest = max(stage.context_tokens, stage.evaluate.context_tokens or 0 if stage.evaluate else 0)
            share = COLOCATED_SHARE if colocated else MEMORY_SHARE
            sequences = sequences_at_once(shape, config, recipe, longest, given.gpu_gb * GB, share=share)
            problems += _too_large(stage, learner_gb, sequences, longest, given.gpu_gb)
    per_hour = _per_hour(groups, given.prices)
    seconds = (given.step_seconds or {}).get(stage.name, (given.step_seconds or {}).get(""))
    hours = stage.max_steps * seconds / 3600 if stage.max_steps and seconds is not None else None
    deadline = stage.active_deadline_seconds
    return StagePlan(
        name=stage.name, type=stage.type.value, context_tokens=stage.context_tokens, max_steps=stage.max_steps,
        gpus=gpus, engines=engines, learners=learners, learner_gb=learner_gb, sequences=sequences, per_hour=per_hour,
        hours=hours, cost=None if hours is None or per_hour is None else hours * per_hour,
        at_most=None if deadline is None or per_hour is None else deadline / 3600 * per_hour,
        problems=tuple(problems),
    )  # fmt: skip


def _groups(stage: Stage) -> list[WorkerGroup]:
    """Return the worker groups of an attempt with defaults filled in. The head uses no GPU."""
    learners = stage.resources.learners or (WorkerGroup() if stage.type is StageType.TRAIN else None)
    samplers = None if stage.placement is Placement.COLOCATED else stage.resources.samplers or WorkerGroup()
    return [group for group in (samplers, learners) if group is not None]


def _misfits(stage: Stage, recipe: Recipe, config: Mapping[str, Any], learners: int) -> Iterator[str]:
    """Yield a message for each setting that does not match the model."""
    shape, where = ModelShape.of(config), f"stages[{stage.name}]"
    longest = [(stage.context_tokens, f"{where}.contextTokens")]
    if stage.evaluate and stage.evaluate.context_tokens:
        longest.append((stage.evaluate.context_tokens, f"{where}.evaluate.contextTokens"))
    try:
        scaled = {**config, **rope_entries(config, stage.rope)}
        context, field = max(longest)
        yield from (r.message for r in length_refusals(scaled, recipe, context, field))
    except ValueError as error:
        yield str(error)
    yield from (r.message for r in tp_refusals(shape, recipe))
    if stage.type is StageType.TRAIN:
        yield from (r.message for r in rank_refusals(shape, recipe, learners))


def _too_large(stage: Stage, learner_gb: float | None, sequences: int, longest: int, gpu_gb: float) -> Iterator[str]:
    if learner_gb is not None and learner_gb > gpu_gb:
        yield (
            f"a learner of stages[{stage.name}] needs {learner_gb:.0f} GB of {gpu_gb:g}: give it more learners, or set "
            "recipe.sequenceParallel or recipe.activationOffload; `deepcoder-trainer plan` finds the least change"
        )
    if not sequences:
        yield (
            f"no engine of stages[{stage.name}] holds a response of {longest} tokens: raise recipe.tensorParallel, or "
            "use GPUs with more memory (--memory)"
        )


def _per_hour(groups: Sequence[WorkerGroup], prices: Sequence[Price]) -> float | None:
    total = 0.0
    for group in groups:
        spec = group.template.get("spec") or {}
        if gpus := group.replicas * pod_gpus(spec):
            rate = per_gpu_hour(prices, spec.get("nodeSelector") or {})
            if rate is None:
                return None
            total += gpus * rate
    return total if prices else None
