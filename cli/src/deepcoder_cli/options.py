"""Options that commands share, named as in kubectl, and how they become a client."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from deepcoder_cli import suggest
from deepcoder_client.client import Client

Command = TypeVar("Command", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A finite number within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert as click does, and refuse NaN and infinity."""
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number", param, ctx)
        return found


@dataclass(frozen=True)
class Where:
    """Which cluster and namespace."""

    namespace: str | None
    context: str | None
    kubeconfig: Path | None
    timeout: float
    all_namespaces: bool = False

    def client(self) -> Client:
        """Return a client for the cluster. Raises `NoCluster`."""
        return Client(self.context, kubeconfig=self.kubeconfig, namespace=self.namespace, timeout=self.timeout)


def cluster(*, all_namespaces: bool = False) -> Callable[[Command], Command]:
    """Add `-n`, `--context`, `--kubeconfig`, `--request-timeout`, and `-A` if requested. The command gets `where`."""

    def decorate(command: Command) -> Command:
        def called(**given: Any) -> Any:
            if given.get("all_namespaces") and given.get("run") is not None:
                raise click.UsageError("-A covers all runs: to name one run, leave out -A and use -n")
            where = Where(
                given.pop("namespace"), given.pop("context"), given.pop("kubeconfig"), given.pop("request_timeout"),
                given.pop("all_namespaces", False),
            )  # fmt: skip
            return command(where=where, **given)

        called.__doc__, called.__name__ = command.__doc__, command.__name__
        called.__click_params__ = list(getattr(command, "__click_params__", ()))  # type: ignore[attr-defined]
        options = [
            click.option(
                "-n", "--namespace", help="Namespace (default: the namespace of the context).",
                shell_complete=suggest.namespaces,
            ),
            click.option("--context", help="Context in the kubeconfig.", shell_complete=suggest.contexts),
            click.option("--kubeconfig", type=click.Path(path_type=Path), help="Kubeconfig file (default: kubectl's)."),
            click.option(
                "--request-timeout", type=Number(min=0.1, max=3600), default=10.0, show_default=True,
                metavar="SECONDS", help="Longest wait for one response of the API server.",
            ),
        ]  # fmt: skip
        if all_namespaces:
            options.insert(1, click.option("-A", "--all-namespaces", is_flag=True, help="Runs of all namespaces."))
        for option in reversed(options):
            called = option(called)
        return called  # type: ignore[return-value]

    return decorate


def output(*formats: str) -> Callable[[Command], Command]:
    """`-o`, as `output`."""
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
