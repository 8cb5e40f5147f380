"""The command line. Each command is imported only when it is used, so that completion stays fast."""

from __future__ import annotations

import importlib
from typing import Any

import click

from deepcoder_cli.exit_codes import MEANINGS
from deepcoder_cli.options import shared

COMPLETE_VARIABLE = "_KUBECTL_DEEPCODER_COMPLETE"
"""Environment variable by which a shell's completion script calls the program."""

COMMANDS = {
    "status": "status",
    "plan": "plan",
    "stages": "stages",
    "logs": "logs",
    "samples": "samples",
    "lineage": "lineage",
    "verify": "lineage",
    "approve": "control",
    "suspend": "control",
    "resume": "control",
    "cost": "cost",
    "compare": "compare",
    "dashboard": "dashboard",
    "debug-bundle": "bundle",
    "completion": "completion",
}
"""Module of `deepcoder_cli.commands` by command name, in the order in which help lists the commands."""


class Lazy(click.Group):
    """A group that imports a command only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command, an attribute of its module with the command's name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"deepcoder_cli.commands.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve as click does, but list the commands if the name is unknown."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"unknown command {args[0]}: the commands are {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)


def _codes() -> str:
    return "\n".join(f"  {code:>3}  {said}" for code, said in MEANINGS.items())


@click.group(
    cls=Lazy,
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
