"""The command line: all commands as `usage` declares them. What they do is loaded when one of them runs."""

from __future__ import annotations

from typing import Any

import click

from deepcoder_cli.exit_codes import MEANINGS
from deepcoder_cli.options import shared
from deepcoder_cli.usage import runs, stored, tools

COMPLETE_VARIABLE = "_KUBECTL_DEEPCODER_COMPLETE"
"""Environment variable by which a shell's completion script calls the program."""

_IN_ORDER = (
    runs.STATUS,
    runs.PLAN,
    runs.STAGES,
    stored.LOGS,
    stored.SAMPLES,
    stored.LINEAGE,
    stored.VERIFY,
    runs.APPROVE,
    runs.SUSPEND,
    runs.RESUME,
    runs.COST,
    runs.COMPARE,
    tools.DASHBOARD,
    tools.DEBUG_BUNDLE,
    tools.COMPLETION,
)
COMMANDS = {str(command.name): command for command in _IN_ORDER}
"""Commands by name, in the order in which help lists them."""


class Ordered(click.Group):
    """A group that lists its commands in their order, also if there is none with a given name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in order; click would sort them."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve as click does, but list the commands if the name is unknown."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            ctx.fail(f"unknown command {args[0]}: the commands are {', '.join(self.commands)}")
        return super().resolve_command(ctx, args)


def _codes() -> str:
    return "\n".join(f"  {code:>3}  {said}" for code, said in MEANINGS.items())


@click.group(
    cls=Ordered,
    commands=COMMANDS,
    params=shared(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=f"\b\nExit codes:\n{_codes()}\n\n\b\nExamples:\n  kubectl deepcoder status\n"
    "  kubectl deepcoder status demo -n demo --watch\n  kubectl deepcoder COMMAND --help",
)
@click.version_option(package_name="deepcoder-cli", message="%(version)s")
def app(**_: Any) -> None:
    """DeepCoder runs, with nothing but your kubeconfig.

    If you lack a permission, the message names it. Commands that read a run's bucket use your own S3 credentials if the
    environment names some, else those of the run's Secret if you may read it. The options below are kubectl's. They
    can stand before or after a command.
    """
