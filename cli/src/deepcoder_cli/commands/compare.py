"""`compare`: two runs side by side: how their specs differ, and what they achieved.

Figures of steps come from the runs' buckets. If a bucket cannot be read, its run is compared by its status, and a note
says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from deepcoder_cli.output import document, table
from deepcoder_cli.terminal import say
from deepcoder_cli.where import Where
from deepcoder_client.client import Client
from deepcoder_client.cost import cost
from deepcoder_client.errors import NoData, StorageError
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.steps import StepRecord

SHOWN = ("reward_mean", "truncated_ratio", "response_tokens_mean", "entropy")
_LAST = 5


def compare(where: Where, first: str, second: str, endpoint: str | None, output: str) -> None:
    """Print where two runs differ, and their figures."""
    client = where.client()
    runs = [client.get(name.rpartition("/")[2], name.rpartition("/")[0] or None) for name in (first, second)]
    differences = _differences(*(_flat(_spec(run)) for run in runs))
    figures, notes = [], []
    for run in runs:
        found, note = _figures(client, run, endpoint)
        figures.append(found)
        notes += [note] if note else []
    rows = [(name, figures[0].get(name), figures[1].get(name)) for name in dict.fromkeys([*figures[0], *figures[1]])]
    names = [f"{run.metadata.namespace}/{run.metadata.name}" for run in runs]
    if output != "table":
        document(
            {
                "runs": names, "notes": notes,
                "spec": [{"field": f, "values": [a, b]} for f, a, b in differences],
                "figures": [{"name": n, "values": [a, b]} for n, a, b in rows],
            },
            output,
        )  # fmt: skip
        return
    if differences:
        table(("field", *names), differences)
    else:
        click.echo("the specs are the same")
    click.echo()
    table(("figure", *names), rows)
    for note in notes:
        say(f"note: {note}", err=True)


def _spec(run: DeepCoderRun) -> dict[str, Any]:
    spec: dict[str, Any] = run.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return spec


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return fields by dotted path; elements of a list by name, if each has one."""
    if isinstance(value, Mapping):
        return {k: v for key, each in value.items() for k, v in _flat(each, f"{path}.{key}" if path else key).items()}
    if isinstance(value, list) and value and all(isinstance(each, dict) and "name" in each for each in value):
        return {k: v for each in value for k, v in _flat(each, f"{path}[{each['name']}]").items()}
    return {path: value}


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    fields = dict.fromkeys([*first, *second])
    return [(f, first.get(f), second.get(f)) for f in fields if first.get(f) != second.get(f)]


def _figures(client: Client, run: DeepCoderRun, endpoint: str | None) -> tuple[dict[str, Any], str | None]:
    spent = cost(run, datetime.now(UTC))
    found: dict[str, Any] = {
        "phase": run.status.phase, "GPU hours": round(spent.gpu_hours, 3),
        "wasted GPU hours": round(spent.wasted_gpu_hours, 3), "cost": spent.amount, "attempts": run.status.ordinal,
    }  # fmt: skip
    note = None
    try:
        steps = client.folder(run, endpoint=endpoint).steps()
    except (StorageError, NoData) as error:
        steps, note = [], f"no figures of steps of {run.metadata.name}: {error}"
    for stage in run.status.stages:
        own = [step for step in steps if step.stage == stage.name]
        found[f"{stage.name}: steps"] = len(own) or stage.step
        found |= {f"{stage.name}: {name}": value for name, value in _means(own).items()}
        if "reward_mean" not in _means(own) and stage.reward is not None:
            found[f"{stage.name}: reward_mean"] = float(stage.reward)
        # The other results of a stage that has trained are those of its last step alone.
        scores = sorted((name, value) for name, value in stage.results.items() if name.startswith("eval/"))
        found |= {f"{stage.name}: {name}": float(value) for name, value in scores}
    return found, note


def _means(steps: list[StepRecord]) -> dict[str, float]:
    last = steps[-_LAST:]
    means = {}
    for name in SHOWN:
        values = [step.metrics[name] for step in last if name in step.metrics]
        if values:
            means[name] = sum(values) / len(values)
    if last:
        means["seconds a step"] = sum(sum(step.phase_seconds.values()) for step in last) / len(last)
    return means
