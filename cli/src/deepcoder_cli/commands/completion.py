"""`completion`: the script that a shell evaluates. kubectl's own completion runs `kubectl_complete-deepcoder`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from deepcoder_cli.app import COMPLETE_VARIABLE, app
from deepcoder_cli.options import examples

PROGRAM = "kubectl-deepcoder"


@click.command(
    epilog=examples(
        """
source <(kubectl deepcoder completion bash)      # in ~/.bashrc
source <(kubectl deepcoder completion zsh)       # in ~/.zshrc
kubectl deepcoder completion fish > ~/.config/fish/completions/kubectl-deepcoder.fish
"""
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell.

    The script completes `kubectl-deepcoder`. For `kubectl deepcoder`, use kubectl's own completion: it finds the
    program kubectl_complete-deepcoder next to this one.
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the three"
    click.echo(kind(app, {}, PROGRAM, COMPLETE_VARIABLE).source())
