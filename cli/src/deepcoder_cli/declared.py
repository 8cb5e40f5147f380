"""Commands as they are declared: name, help, options and examples, and by name the function that does the work."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

import click

from deepcoder_cli.later import Later
from deepcoder_cli.options import shared
from deepcoder_cli.where import NAMES, where


class Declared(click.Command):
    """A command whose work is a function of `commands`, imported when the command runs."""

    def __init__(self, work: str, help: str, *params: click.Parameter, examples: str) -> None:
        """`work` is MODULE:FUNCTION. The command has the function's name, and the function takes its parameters.

        `examples` has one example per line.
        """
        lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
        super().__init__(
            work.partition(":")[2].replace("_", "-"), callback=self._run, params=list(params), help=cleandoc(help),
            epilog=f"\b\nExamples:\n{lines}",
        )  # fmt: skip
        self.work = Later(f"commands.{work}")

    def _run(self, **given: Any) -> Any:
        return self.work(**given)


class OfCluster(Declared):
    """A command that connects to a cluster: it also has kubectl's options, and its work receives them as `where`."""

    def __init__(
        self, work: str, help: str, *params: click.Parameter, examples: str, all_namespaces: bool = False, own: str = ""
    ) -> None:
        """`own` is an option of the command that has another meaning in kubectl."""
        options = [option for option in shared() if own not in option.opts]
        if all_namespaces:
            options.insert(1, click.Option(["-A", "--all-namespaces"], is_flag=True, help="Runs of all namespaces."))
        super().__init__(work, help, *params, *options, examples=examples)

    def _run(self, **given: Any) -> Any:
        everywhere = given.pop("all_namespaces", False)
        if everywhere and given.get("run") is not None:
            raise click.UsageError("-A covers all runs: to name one run, leave out -A and use -n")
        found = where(click.get_current_context(), given, all_namespaces=everywhere)
        return super()._run(where=found, **{name: value for name, value in given.items() if name not in NAMES})

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's options, and where kubectl's options are listed."""
        super().format_options(ctx, formatter)
        formatter.write("\n  --context, --as and kubectl's other options: see kubectl deepcoder --help.\n")
