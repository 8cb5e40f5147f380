"""`plan`: what a run would need, before anything is applied.

A file that is not a run, or a setting that cannot work, is reported with its field. Unknown values (a model, a price)
leave their column empty and are reported, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import click

from deepcoder_cli.exit_codes import Exit
from deepcoder_cli.output import document, table
from deepcoder_cli.terminal import say
from deepcoder_cli.where import Where
from deepcoder_client.manifests import load_all
from deepcoder_client.plan import Given, RunPlan, read_model_config
from deepcoder_client.plan import plan as plan_of
from deepcoder_client.prices import price_list

COLUMNS = (
    "stage",
    "type",
    "context",
    "gpus",
    "engines",
    "learners",
    "gb a learner",
    "sequences",
    "an hour",
    "hours",
    "cost",
)


def plan(
    where: Where, filename: Path, memory: float, model_config: Path | None, price_file: Path | None,
    gpu_hour: float | None, step_seconds: tuple[str, ...], on_server: bool, output: str,
) -> int:  # fmt: skip
    """Print what the runs in a file would need."""
    config = read_model_config(model_config) if model_config else None
    manifests = load_all("/dev/stdin" if filename == Path("-") else filename)
    if not manifests:
        raise click.UsageError(f"{filename} holds no DeepCoderRun")
    stages = [stage.name for manifest in manifests for stage in manifest.spec.stages]
    given = Given(memory, price_list(price_file, gpu_hour), _seconds(step_seconds, stages))
    if on_server:
        client = where.client()
        for manifest in manifests:
            client.apply(manifest, namespace=where.namespace, dry_run=True, force=True)
    plans = [plan_of(manifest, given, config) for manifest in manifests]
    if output != "table":
        document([{"gpus": p.gpus, "cost": p.cost, "fits": p.fits} | _fields(p) for p in plans], output)
    else:
        for each in plans:
            _print(each)
    return Exit.DONE if all(each.fits for each in plans) else Exit.NOT_SO


def _fields(plan: RunPlan) -> dict[str, object]:
    names = ("name", "model", "parameters", "checkpoint_gb", "export_gb", "stages", "problems", "notes")
    return {name: getattr(plan, name) for name in names}


def _print(plan: RunPlan) -> None:
    size = f", {plan.parameters / 1e9:.2f} B parameters" if plan.parameters else ""
    saved = f", {plan.checkpoint_gb:.0f} GB a checkpoint" if plan.checkpoint_gb else ""
    say(f"{plan.name}: {plan.model}{size}, at most {plan.gpus} GPUs at once{saved}")
    table(
        COLUMNS,
        (
            (
                s.name, s.type, s.context_tokens, s.gpus, s.engines, s.learners or None, _round(s.learner_gb),
                s.sequences, _money(s.per_hour), _round(s.hours), _money(s.cost),
            )
            for s in plan.stages
        ),
    )  # fmt: skip
    if plan.export_gb is not None:
        click.echo(f"host memory of a stage's first learner, for the export at its end: {plan.export_gb:.1f} GB")
    if plan.cost is not None:
        click.echo(f"cost of all stages: {plan.cost:,.2f}")
    for stage in plan.stages:
        if stage.at_most is not None:
            click.echo(f"stage {stage.name} ends after its activeDeadlineSeconds: at most {stage.at_most:,.2f}")
    for problem in (*plan.problems, *(problem for stage in plan.stages for problem in stage.problems)):
        say(f"to change: {problem}")
    for note in plan.notes:
        say(f"note: {note}")


def _round(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def _money(value: float | None) -> str | None:
    return None if value is None else f"{value:,.2f}"


def _seconds(given: tuple[str, ...], stages: Sequence[str]) -> dict[str, float]:
    """Return the seconds per step by stage; the empty name stands for all other stages."""
    found = {}
    for text in given:
        stage, _, seconds = text.rpartition("=")
        if stage and stage not in stages:
            raise click.UsageError(f"--step-seconds {text}: there is no stage {stage}: name one of {', '.join(stages)}")
        try:
            found[stage] = float(seconds)
        except ValueError:
            found[stage] = math.nan
        if not 0 <= found[stage] < math.inf:
            raise click.UsageError(f"--step-seconds {text}: give SECONDS, or STAGE=SECONDS")
    return found
