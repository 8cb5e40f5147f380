"""`completion`: the script that a shell evaluates. kubectl's own completion runs `kubectl_complete-deepcoder`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from deepcoder_cli.app import COMPLETE_VARIABLE, app

PROGRAM = "kubectl-deepcoder"


def completion(shell: str) -> None:
    """Print the script for a shell."""
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the three"
    click.echo(kind(app, {}, PROGRAM, COMPLETE_VARIABLE).source())
