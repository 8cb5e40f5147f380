"""Determines the cluster, the namespace and the user that a command line selects.

Every option may stand before the command or after it. If both places have it, the one after the command counts. The
client is loaded when a command asks for it, because help and most completions need only the options.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepcoder_cli.later import loading
from deepcoder_client.settings import TIMEOUT_SECONDS, Overrides

if TYPE_CHECKING:
    from deepcoder_client.client import Client
    from deepcoder_client.connection import Connection


@dataclass(frozen=True)
class Where:
    """A cluster, a user and a namespace."""

    namespace: str | None
    context: str | None
    kubeconfig: Path | None
    timeout: float
    overrides: Overrides
    all_namespaces: bool = False

    def connection(self) -> Connection:
        """Return a connection to the cluster. Raises `NoCluster`."""
        with loading():
            from urllib3.exceptions import InsecureRequestWarning

            from deepcoder_client.connection import Connection

        # Verification is only ever off because an option or the kubeconfig says so.
        warnings.filterwarnings("ignore", category=InsecureRequestWarning)
        return Connection.open(self.context, self.kubeconfig, self.timeout, self.overrides)

    def client(self) -> Client:
        """Return a client for the cluster. Raises `NoCluster`."""
        with loading():
            from deepcoder_client.client import Client

        return Client(connection=self.connection(), namespace=self.namespace)


OVERRIDES = tuple(field.name for field in fields(Overrides))
NAMES = ("namespace", "context", "kubeconfig", "request_timeout", *OVERRIDES)
"""Names of all options that choose cluster, user and namespace."""


def where(context: click.Context, given: Mapping[str, Any], *, all_namespaces: bool = False) -> Where:
    """Return what the options say: `given`, those after the command, or else those before it."""
    before = context.find_root().params
    found: dict[str, Any] = {name: given.get(name) or before.get(name) for name in NAMES}
    if (found["as_groups"] or found["as_uid"]) and not found["as_user"]:
        raise click.UsageError("--as-group and --as-uid need a user: name one with --as")
    overrides = Overrides(**{name: found[name] for name in OVERRIDES if found[name]})
    timeout = found["request_timeout"] or TIMEOUT_SECONDS
    return Where(found["namespace"], found["context"], found["kubeconfig"], timeout, overrides, all_namespaces)
