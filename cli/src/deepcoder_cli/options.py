"""Options that commands share, and how each becomes a client: the words that kubectl's users know."""

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
    """A number within bounds, which neither NaN nor infinity is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As click does."""
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is no finite number", param, ctx)
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
        """A client of it; raises `NoCluster`."""
        return Client(self.context, kubeconfig=self.kubeconfig, namespace=self.namespace, timeout=self.timeout)


def cluster(*, all_namespaces: bool = False) -> Callable[[Command], Command]:
    """`-n`, `--context`, `--kubeconfig`, `--request-timeout`, and `-A` where it is meant; the command gets `where`."""

    def decorate(command: Command) -> Command:
        def called(**given: Any) -> Any:
            if given.get("all_namespaces") and given.get("run") is not None:
                raise click.UsageError("-A is for all runs: leave it out where one is named, and use -n")
            where = Where(
                given.pop("namespace"), given.pop("context"), given.pop("kubeconfig"), given.pop("request_timeout"),
                given.pop("all_namespaces", False),
            )  # fmt: skip
            return command(where=where, **given)

        called.__doc__, called.__name__ = command.__doc__, command.__name__
        called.__click_params__ = list(getattr(command, "__click_params__", ()))  # type: ignore[attr-defined]
        options = [
            click.option(
                "-n", "--namespace", help="Namespace; that of the context when left out.",
                shell_complete=suggest.namespaces,
            ),
            click.option("--context", help="Context of the kubeconfig.", shell_complete=suggest.contexts),
            click.option("--kubeconfig", type=click.Path(path_type=Path), help="File in place of KUBECONFIG's."),
            click.option(
                "--request-timeout", type=Number(min=0.1, max=3600), default=10.0, show_default=True,
                metavar="SECONDS", help="Longest wait for one answer of the API server.",
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
        help="How to print it.",
    )  # fmt: skip


def run_argument(name: str = "run", **settings: Any) -> Callable[[Command], Command]:
    """The name of a run, completed from those that there are."""
    return click.argument(name, shell_complete=suggest.runs, **settings)


endpoint = click.option(
    "--endpoint", metavar="URL", help="The S3 server as this machine reaches it, where that differs from the run's."
)


def examples(text: str) -> str:
    """An epilog as click prints it: examples, a line each."""
    lines = "\n".join(f"  {line}" for line in text.strip().splitlines())
    return f"\b\nExamples:\n{lines}"
