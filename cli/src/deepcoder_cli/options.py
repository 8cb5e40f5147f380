"""Options that commands share, named as in kubectl.

The options that choose a cluster and its user can stand before a command or after it, as kubectl's own do. The help of
the program lists all of them; that of a command lists only those that choose the runs.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import click

from deepcoder_cli.later import Later
from deepcoder_client.settings import TIMEOUT_SECONDS

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


def shared() -> list[click.Parameter]:
    """Return the options that choose cluster, user and namespace."""
    return [
        click.Option(
            ["-n", "--namespace"], metavar="NAME", help="Namespace (default: the namespace of the context).",
            shell_complete=Later("suggest:namespaces"),
        ),
        OfKubectl(
            ["--context"], metavar="NAME", help="Context in the kubeconfig.", shell_complete=Later("suggest:contexts")
        ),
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
            help=f"Longest wait for one response of the API server (default: {TIMEOUT_SECONDS:.0f}s).",
        ),
    ]  # fmt: skip


def output() -> click.Option:
    """Return `-o`, which the command receives as `output`."""
    return click.Option(
        ["-o", "--output"], type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True,
        help="Output format.",
    )  # fmt: skip


def run_argument(name: str = "run", **settings: Any) -> click.Argument:
    """Return an argument that names a run. Completion offers the existing runs."""
    return click.Argument([name], shell_complete=Later("suggest:runs"), **settings)


def endpoint() -> click.Option:
    """Return the option for the URL of the run's S3 server."""
    return click.Option(
        ["--endpoint"], metavar="URL", help="S3 endpoint to use from this machine (default: the run's own)."
    )


def gpu_hour() -> click.Option:
    """Return the option for one price of all GPUs."""
    return click.Option(["--gpu-hour"], type=Number(min=0), metavar="PRICE", help="One price for every GPU.")


def operator_namespace() -> click.Option:
    """Return the option for the namespace of the operator's chart."""
    return click.Option(
        ["--operator-namespace"], default="deepcoder", show_default=True, help="Namespace of the chart."
    )
