"""Words for shell completion: runs, held stages, namespaces, contexts.

Nothing here may fail or wait for long: if the cluster cannot be reached, there are no words. Runs are read as plain
objects, because their types take half as long to load as all the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import click

from deepcoder_cli.where import Where, where
from deepcoder_client.connection import RUNS, Kind
from deepcoder_client.contexts import context_names
from deepcoder_client.errors import ClientError

SECONDS = 3.0
NAMESPACES = Kind("namespaces")


def runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of runs in the selected namespace."""
    try:
        chosen = _where(context)
        connection = chosen.connection()
        found = connection.list(RUNS, chosen.namespace or connection.namespace)["items"]
    except (ClientError, click.UsageError):
        return []
    return _beginning(incomplete, (run["metadata"]["name"] for run in found))


def held_stages(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the named run's stages with a hold."""
    try:
        chosen = _where(context)
        connection = chosen.connection()
        run = connection.get(RUNS, chosen.namespace or connection.namespace, str(context.params["run"]))
    except (ClientError, click.UsageError, KeyError):
        return []
    return _beginning(incomplete, (stage["name"] for stage in run["spec"]["stages"] if stage.get("hold")))


def namespaces(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the cluster's namespaces, if the user may list them."""
    try:
        found = _where(context).connection().list(NAMESPACES, None)["items"]
    except (ClientError, click.UsageError):
        return []
    return _beginning(incomplete, (each["metadata"]["name"] for each in found))


def contexts(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the contexts of the selected kubeconfig."""
    try:
        return _beginning(incomplete, context_names(_where(context).kubeconfig))
    except (ClientError, click.UsageError):
        return []


def _where(context: click.Context) -> Where:
    return replace(where(context, context.params), timeout=SECONDS)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
