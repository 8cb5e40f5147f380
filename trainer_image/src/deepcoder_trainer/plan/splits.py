"""Ways to split GPUs between learners and samplers, whether each fits, and what to change if not.

A change is searched for, not guessed: it is the smallest one that fits by the same arithmetic. Changes are tried in the
order in which they cost speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deepcoder_contracts.fit import length_refusals, rank_refusals, tp_refusals
from deepcoder_contracts.learner_memory import (
    COLOCATED_SHARE,
    GB,
    MEMORY_SHARE,
    LearnerMemory,
    learner_memory,
    sequences_at_once,
)
from deepcoder_contracts.model_shape import ModelShape, sp_refusals
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.supported import stage_refusals
from deepcoder_trainer.modelconfig import rope_entries
from deepcoder_trainer.plan.document import Planned
from deepcoder_trainer.shapes import model_shape

LEARNER_SHARES = (1 / 4, 3 / 8, 1 / 2)
"""Shares of the GPUs that learn, to try. Sampling takes longer than training, especially for long responses."""

MOST_LEARNERS = 4096
"""Largest number of learners of a stage."""


@dataclass(frozen=True)
class Split:
    """One way to use the GPUs, with its memory."""

    learners: int
    sampler_gpus: int
    memory: LearnerMemory | None
    """Memory of one learner; None if nothing is trained."""

    changes: tuple[str, ...]
    """Changes without which the split cannot work; empty if it fits."""


@dataclass(frozen=True)
class Question:
    """The inputs that all splits of a plan share."""

    planned: Planned
    model_config: Mapping[str, Any]
    memory: float
    """Memory of one GPU in bytes."""

    @property
    def shape(self) -> ModelShape:
        """The model's shape."""
        return model_shape(self.model_config)

    @property
    def colocated(self) -> bool:
        """Whether samplers and learners share GPUs in the stage that trains with the most tokens at once."""
        trained = self.planned.trained
        return trained is not None and trained.colocated

    @property
    def recipe(self) -> Recipe:
        """Recipe of the stage that trains with the most tokens at once, or of the run if nothing is trained."""
        trained = self.planned.trained
        return self.planned.recipe if trained is None else self.planned.recipe_of(trained)


def splits(question: Question, gpus: int) -> list[Split]:
    """Return the ways to split `gpus`. All GPUs sample if nothing is trained, and do both if they are shared."""
    if question.planned.trained is None:
        return [split(question, 0, gpus)]
    if question.colocated:
        return [split(question, gpus, gpus)]
    counts = sorted({max(1, round(gpus * share)) for share in LEARNER_SHARES})
    return [split(question, learners, gpus - learners) for learners in counts]


def split(question: Question, learners: int, sampler_gpus: int) -> Split:
    """Compute one split: the memory of a learner, and what must change."""
    recipe, shape = question.recipe, question.shape
    changes: list[str] = []
    if sampler_gpus < recipe.tensor_parallel or sampler_gpus % recipe.tensor_parallel:
        changes.append(
            f"{sampler_gpus} sampler GPUs do not divide into engines of recipe.tensorParallel "
            f"{recipe.tensor_parallel}: split them otherwise"
        )
    memory = None
    if (trained := question.planned.trained) is not None:
        memory = learner_memory(shape, recipe, learners, trained.context_tokens, colocated=trained.colocated)
        refused = [r.message for r in rank_refusals(shape, recipe, learners)]
        changes += refused
        if memory.total > question.memory and not refused:
            changes.append(_learner_change(question, learners, trained.context_tokens))
    return Split(learners, sampler_gpus, memory, tuple(changes))


def changes_for_any(question: Question) -> list[str]:
    """Return the changes that are needed for every split."""
    changes: list[str] = []
    for stage in question.planned.stages:
        scaled = {**question.model_config, **rope_entries(question.model_config, stage.rope)}
        changes += [r.message for r in length_refusals(scaled, question.recipe, *stage.longest)]
        recipe = question.planned.recipe_of(stage)
        changes += [r.message for r in stage_refusals(recipe, stage, f"stages[{stage.name}]")]
    changes += [r.message for r in tp_refusals(question.shape, question.recipe)]
    if not sequences(question, *question.planned.sampled):
        changes.append(_engine_change(question, *question.planned.sampled))
    for stage in question.planned.stages:
        if stage.colocated and not sequences(question, *stage.longest, share=COLOCATED_SHARE):
            context, field = stage.longest
            changes.append(
                f"no engine beside a learner holds a sequence of {field} {context}: set "
                f"stages[{stage.name}].placement: Separate, or use GPUs with more memory (--memory)"
            )
    return changes


def sequences(question: Question, context: int, _field: str = "", *, share: float = MEMORY_SHARE) -> int:
    """Return how many sequences with responses of `context` tokens one engine holds at once."""
    return sequences_at_once(
        question.shape, question.model_config, question.recipe, context, question.memory, share=share
    )


def _learner_change(question: Question, learners: int, context: int) -> str:
    """Return the smallest change with which a learner's memory suffices."""
    shared = [n for n in (1, 2, 4, 8) if not any(sp_refusals(question.shape, n))]

    def cheaper(ranks: int) -> Iterator[Recipe]:
        """Yield recipes that take less memory, the fastest first: offloading is cheaper than sequence parallelism."""
        least = question.recipe.model_copy(update={"tokens_per_device": None})  # room for one longest sequence
        yield least
        for sp in (n for n in shared if n >= least.sequence_parallel and not ranks % n):
            for offload in sorted({least.activation_offload, True}):
                yield least.model_copy(update={"sequence_parallel": sp, "activation_offload": offload})

    for ranks in range(learners, MOST_LEARNERS):
        for recipe in cheaper(ranks):
            needed = learner_memory(question.shape, recipe, ranks, context, colocated=question.colocated)
            if needed.total <= question.memory:
                settings = _written(question.recipe, recipe)
                if ranks == learners:
                    return f"set {settings}"
                return f"give it {ranks} learners" + (f", and set {settings}" if settings else "")
    return "no number of learners is enough: lower contextTokens, or use GPUs with more memory (--memory)"


def _written(before: Recipe, after: Recipe) -> str:
    """Return the differing settings in the notation of a run's file."""
    fields = {
        "tokensPerDevice: null": before.tokens_per_device != after.tokens_per_device,
        f"sequenceParallel: {after.sequence_parallel}": before.sequence_parallel != after.sequence_parallel,
        "activationOffload: true": before.activation_offload != after.activation_offload,
    }
    return " and ".join(f"recipe.{field}" for field, differs in fields.items() if differs)


def _engine_change(question: Question, context: int, field: str) -> str:
    """Return the smallest tensorParallel with which an engine holds the longest sequence, as advice."""
    for devices in (2, 4, 8):
        recipe = question.recipe.model_copy(update={"tensor_parallel": devices})
        if devices <= question.recipe.tensor_parallel or any(tp_refusals(question.shape, recipe)):
            continue
        if sequences(replace(question, planned=question.planned.model_copy(update={"recipe": recipe})), context):
            return f"set recipe.tensorParallel: {devices}, so that an engine holds a sequence of the longest length"
    return f"no engine holds a sequence of {field} {context}: lower it, or use GPUs with more memory (--memory)"


def gigabytes(size: float) -> str:
    """Format a number of bytes in GB, for output."""
    return f"{size / GB:.1f}" if size < 10 * GB else f"{size / GB:.0f}"
