"""Options that commands share, named as in kubectl, and how they become a client.

The options that choose a cluster and its user can stand before a command or after it, as kubectl's own do. The help of
the program lists all of them; that of a command lists only those that choose the runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from deepcoder_cli import suggest
from deepcoder_cli.where import DEFAULT_SECONDS, NAMES, where

Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(h|ms|m|s|us|µs|ns)")


class Number(click.FloatRange):
    """A finite number within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert as click does, and refuse NaN and infinity."""
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number", param, ctx)
        return found


class Duration(Number):
    """Seconds, as a number or as a duration of kubectl and Go: 30, 30s, 1m30s. 0, for no limit, becomes the maximum."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert to seconds within the bounds."""
        text = str(value)
        if text and not _PART.sub("", text):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
        else:
            try:
                seconds = float(text)
            except ValueError:
                self.fail(f"{value} is not a duration: give seconds, or a number with a unit, like 2m", param, ctx)
        return super().convert(seconds or self.max, param, ctx)


class OfKubectl(click.Option):
    """An option of kubectl that chooses the cluster or its user. Only the program's own help lists it."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option's entry in the help; None in the help of a command."""
        return super().get_help_record(ctx) if ctx.parent is None else None


class OfCluster(click.Command):
    """A command that connects to a cluster."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's options, and where kubectl's options are listed."""
        super().format_options(ctx, formatter)
        formatter.write("\n  --context, --as and kubectl's other options: see kubectl deepcoder --help.\n")


def shared() -> list[click.Parameter]:
    """Return the options that choose cluster, user and namespace."""
    return [
        click.Option(
            ["-n", "--namespace"], metavar="NAME", help="Namespace (default: the namespace of the context).",
            shell_complete=suggest.namespaces,
        ),
        OfKubectl(["--context"], metavar="NAME", help="Context in the kubeconfig.", shell_complete=suggest.contexts),
        OfKubectl(
            ["--kubeconfig"], type=click.Path(path_type=Path), metavar="FILE",
            help="Kubeconfig file (default: kubectl's).",
        ),
        OfKubectl(["--as", "as_user"], metavar="USER", help="Act as this user or ServiceAccount."),
        OfKubectl(
            ["--as-group", "as_groups"], metavar="GROUP", multiple=True,
            help="Act as a member of this group. Can be repeated.",
        ),
        OfKubectl(["--as-uid"], metavar="UID", help="Act as the user with this UID."),
        OfKubectl(["--cluster"], metavar="NAME", help="Cluster in the kubeconfig."),
        OfKubectl(["--user"], metavar="NAME", help="User in the kubeconfig."),
        OfKubectl(["-s", "--server"], metavar="URL", help="Address of the API server."),
        OfKubectl(["--token"], metavar="TOKEN", help="Bearer token, in place of the user's credentials."),
        OfKubectl(
            ["--certificate-authority"], type=click.Path(), metavar="FILE",
            help="Certificate authority of the API server.",
        ),
        OfKubectl(["--tls-server-name"], metavar="NAME", help="Name in the API server's certificate."),
        OfKubectl(
            ["--insecure-skip-tls-verify"], is_flag=True, default=None,
            help="Do not verify the API server's certificate.",
        ),
        OfKubectl(
            ["--request-timeout"], type=Duration(min=0.1, max=3600), metavar="DURATION",
            help=f"Longest wait for one response of the API server (default: {DEFAULT_SECONDS:.0f}s).",
        ),
    ]  # fmt: skip


def cluster(*, all_namespaces: bool = False, own: str = "") -> Callable[[Command], Command]:
    """Add `-n`, kubectl's options, and `-A` if requested. The command receives `where`.

    `own` is an option of the command that has another meaning in kubectl.
    """

    def decorate(command: Command) -> Command:
        def called(**given: Any) -> Any:
            everywhere = given.pop("all_namespaces", False)
            if everywhere and given.get("run") is not None:
                raise click.UsageError("-A covers all runs: to name one run, leave out -A and use -n")
            found = where(click.get_current_context(), given, all_namespaces=everywhere)
            return command(where=found, **{name: value for name, value in given.items() if name not in NAMES})

        called.__doc__, called.__name__ = command.__doc__, command.__name__
        options = [option for option in shared() if own not in option.opts]
        if all_namespaces:
            options.insert(1, click.Option(["-A", "--all-namespaces"], is_flag=True, help="Runs of all namespaces."))
        # click expects the order in which decorators are applied: the last one first.
        called.__click_params__ = [*getattr(command, "__click_params__", ()), *reversed(options)]  # type: ignore[attr-defined]
        return called  # type: ignore[return-value]

    return decorate


def output(*formats: str) -> Callable[[Command], Command]:
    """Add `-o`, which the command receives as `output`."""
    return click.option(
        "-o", "--output", type=click.Choice(["table", "json", "yaml", *formats]), default="table", show_default=True,
        help="Output format.",
    )  # fmt: skip


def run_argument(name: str = "run", **settings: Any) -> Callable[[Command], Command]:
    """Add an argument that names a run. Completion offers the existing runs."""
    return click.argument(name, shell_complete=suggest.runs, **settings)


endpoint = click.option(
    "--endpoint", metavar="URL", help="S3 endpoint to use from this machine (default: the run's own)."
)


def examples(text: str) -> str:
    """Return an epilog for click: examples, one per line."""
    lines = "\n".join(f"  {line}" for line in text.strip().splitlines())
    return f"\b\nExamples:\n{lines}"
