"""`approve`, `suspend`, `resume`: what may be changed of a run that goes on.

Each is a change of the spec as it is now, asked for again where somebody else was quicker; asking for what is so
already changes nothing. A stage that is not there is refused before anything is sent; of a run that is over it is said.
"""

from __future__ import annotations

import click

from deepcoder_cli import suggest
from deepcoder_cli.exits import Exit
from deepcoder_cli.options import Number, Where, cluster, examples, output, run_argument
from deepcoder_cli.output import document
from deepcoder_client.client import TERMINAL, Client
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.run_status import Phase, StagePhase


@click.command(
    epilog=examples(
        """
kubectl deepcoder approve demo                   # the stage at which the run is held
kubectl deepcoder approve demo 16k 32k           # these, before they are reached as well
"""
    )
)
@run_argument()
@click.argument("stages", nargs=-1, shell_complete=suggest.held_stages)
@output()
@cluster()
def approve(where: Where, run: str, stages: tuple[str, ...], output: str) -> None:
    """Let a run pass the stages that it is held at.

    Without names it is the stage that holds the run now.
    """
    client = where.client()
    wanted = list(stages) or _held(client, run)
    changed = client.approve(run, wanted)
    _say(changed, f"approved: {', '.join(wanted)} (of {', '.join(changed.spec.approved_stages)})", output)


def _held(client: Client, name: str) -> list[str]:
    run = client.get(name)
    held = [stage.name for stage in run.status.stages if stage.phase is StagePhase.HELD]
    if not held:
        raise click.UsageError(f"{name} is {run.status.phase} and held at no stage: name the stages to approve")
    return held


@click.command(
    epilog=examples(
        """
kubectl deepcoder suspend demo
kubectl deepcoder suspend demo --wait --timeout 600
"""
    )
)
@run_argument()
@click.option("--wait", is_flag=True, help="Wait until its pods are free.")
@click.option(
    "--timeout", type=Number(min=0), default=900.0, show_default=True, metavar="SECONDS", help="Longest wait."
)
@output()
@cluster()
def suspend(where: Where, run: str, wait: bool, timeout: float, output: str) -> int:
    """Have a run save, and give its pods back.

    `resume` goes on from what was saved. With --wait the exit code is 1 where the run ended instead.
    """
    client = where.client()
    changed = client.suspend(run)
    _not_over(changed)
    if wait:
        changed = client.wait(run, seconds=timeout, until=lambda r: r.status.phase in {Phase.SUSPENDED, *TERMINAL})
    over = changed.status.phase in TERMINAL
    said = f"is {changed.status.phase}" if over else "suspended" if wait else "is asked to suspend"
    _say(changed, said, output)
    return Exit.NOT_SO if wait and over else Exit.DONE


@click.command(
    epilog=examples(
        """
kubectl deepcoder resume demo
"""
    )
)
@run_argument()
@output()
@cluster()
def resume(where: Where, run: str, output: str) -> None:
    """Let a suspended run go on from its newest checkpoint."""
    changed = where.client().resume(run)
    _not_over(changed)
    _say(changed, "resumed", output)


def _not_over(run: DeepCoderRun) -> None:
    if run.status.phase in TERMINAL:
        click.echo(
            f"note: {run.metadata.name} is {run.status.phase} already; a new run continues it with spec.from", err=True
        )


def _say(run: DeepCoderRun, what: str, output: str) -> None:
    """That it is done; for programs the run as it is now."""
    if output == "table":
        click.echo(f"deepcoderrun/{run.metadata.name} {what}")
    else:
        document(run, output)
