"""Words for shell completion: runs, held stages, namespaces, contexts.

Nothing here may fail or wait for long: if the cluster cannot be reached, there are no words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import click

from deepcoder_cli.where import where
from deepcoder_client.client import Client
from deepcoder_client.connection import Kind
from deepcoder_client.contexts import context_names
from deepcoder_client.errors import ClientError

SECONDS = 3.0
NAMESPACES = Kind("namespaces")


def runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of runs in the selected namespace."""
    try:
        return _beginning(incomplete, (run["metadata"]["name"] for run in _client(context).raw_list()))
    except (ClientError, click.UsageError):
        return []


def held_stages(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the named run's stages with a hold."""
    try:
        stages = _client(context).get(str(context.params["run"])).spec.stages
    except (ClientError, click.UsageError, KeyError):
        return []
    return _beginning(incomplete, (stage.name for stage in stages if stage.hold))


def namespaces(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the cluster's namespaces, if the user may list them."""
    try:
        found = _client(context).connection.list(NAMESPACES, None)["items"]
    except (ClientError, click.UsageError):
        return []
    return _beginning(incomplete, (each["metadata"]["name"] for each in found))


def contexts(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the contexts of the selected kubeconfig."""
    try:
        return _beginning(incomplete, context_names(where(context, context.params).kubeconfig))
    except (ClientError, click.UsageError):
        return []


def _client(context: click.Context) -> Client:
    return replace(where(context, context.params), timeout=SECONDS).client()


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
