"""`status`: all runs in a table, or one run in detail, with `--watch` live until it ends."""

from __future__ import annotations

from datetime import UTC, datetime

import click
from rich.console import Console

from deepcoder_cli.exit_codes import Exit
from deepcoder_cli.follow import follow
from deepcoder_cli.output import age, document, table
from deepcoder_cli.snapshot import take
from deepcoder_cli.view import curve_point, phase_of, render
from deepcoder_cli.where import Where
from deepcoder_client.connection import Object

COLUMNS = ("namespace", "name", "phase", "stage", "context", "step", "reward", "gpus", "attempt", "age")


def status(where: Where, run: str | None, watch: bool, timeout: float, output: str) -> int:
    """Print the runs or one run, or follow it."""
    if watch and (run is None or output != "table"):
        raise click.UsageError("--watch follows one run: name it, and leave out -o")
    client = where.client()
    if run is None:
        _list(list(client.raw_list(all_namespaces=where.all_namespaces)), output)
    elif watch:
        followed = follow(client, run, seconds=timeout, console=Console())
        return Exit.DONE if phase_of(followed) == "Complete" else Exit.NOT_SO
    elif output != "table":
        document(client.raw(run), output)
    else:
        snapshot = take(client, run)
        point = curve_point(snapshot.run)
        Console().print(render(snapshot, [point] if point else [], datetime.now(UTC)))
    return Exit.DONE


def _list(runs: list[Object], form: str) -> None:
    if form != "table":
        document({"apiVersion": "v1", "kind": "List", "items": runs}, form)
    elif runs:
        table(COLUMNS, (_row(run) for run in runs))
    else:
        click.echo("no runs; -A looks in all namespaces", err=True)


def _row(run: Object) -> list[object]:
    known = run.get("status") or {}
    stage, progress = known.get("currentStage") or {}, known.get("progress") or {}
    return [
        run["metadata"]["namespace"], run["metadata"]["name"], phase_of(run), stage.get("name"),
        stage.get("contextTokens"), progress.get("display"), progress.get("reward"), known.get("gpus"),
        stage.get("ordinal") or None, age(run["metadata"].get("creationTimestamp")),
    ]  # fmt: skip
