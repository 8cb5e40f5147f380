"""`approve`, `suspend`, `resume`: changes to a run that is not over.

Each command changes the current spec, and retries if somebody else changed it in between. Repeating a command changes
nothing. An unknown stage is refused before anything is sent. For a run that is over, the command says so. What was
changed is told even if another release wrote the rest of the run.
"""

from __future__ import annotations

from collections.abc import Callable

import click

from deepcoder_cli.exit_codes import Exit
from deepcoder_cli.output import document, plain
from deepcoder_cli.view import phase_of
from deepcoder_cli.where import Where
from deepcoder_client.client import TERMINAL, Client
from deepcoder_client.connection import Object
from deepcoder_client.errors import Unknown
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.run_status import Phase, StagePhase


def approve(where: Where, run: str, stages: tuple[str, ...], output: str) -> None:
    """Approve the named stages, or the one at which the run is held."""
    client = where.client()
    wanted = list(stages) or _held(client, run)
    changed, _ = _changed(lambda: client.approve(run, wanted))
    _not_over(changed)
    _say(changed, f"approved: {', '.join(wanted)} (of {', '.join(changed['spec']['approvedStages'])})", output)


def _held(client: Client, name: str) -> list[str]:
    run = client.get(name)
    held = [stage.name for stage in run.status.stages if stage.phase is StagePhase.HELD]
    if not held:
        raise click.UsageError(f"{name} is {run.status.phase} and not held at any stage: name the stages to approve")
    return held


def suspend(where: Where, run: str, wait: bool, timeout: float, output: str) -> int:
    """Suspend the run, and wait until its pods are gone if asked to."""
    client = where.client()
    changed, unknown = _changed(lambda: client.suspend(run))
    _not_over(changed)
    if wait and unknown is None:
        ended = client.wait(run, seconds=timeout, until=lambda r: r.status.phase in {Phase.SUSPENDED, *TERMINAL})
        _say(plain(ended), "suspended", output)
        return Exit.NOT_SO if ended.status.phase in TERMINAL else Exit.DONE
    _say(changed, "will be suspended", output)
    if wait and unknown is not None:
        raise unknown
    return Exit.DONE


def resume(where: Where, run: str, output: str) -> None:
    """Resume the run."""
    client = where.client()
    changed, _ = _changed(lambda: client.resume(run))
    _not_over(changed)
    _say(changed, "resumed", output)


def _changed(change: Callable[[], DeepCoderRun]) -> tuple[Object, Unknown | None]:
    """Return the changed run, and why this release cannot read the rest of it, if it cannot."""
    try:
        return plain(change()), None
    except Unknown as error:
        if error.changed is None:
            raise
        return error.changed, error


def _not_over(run: Object) -> None:
    if phase_of(run) in TERMINAL:
        click.echo(
            f"note: {run['metadata']['name']} is {phase_of(run)} already; a new run continues it with spec.from",
            err=True,
        )


def _say(run: Object, what: str, output: str) -> None:
    """Print what was done (if the run is over, only that), or for programs the run as it is now."""
    if output == "table":
        said = f"is {phase_of(run)}" if phase_of(run) in TERMINAL else what
        click.echo(f"deepcoderrun/{run['metadata']['name']} {said}")
    else:
        document(run, output)
