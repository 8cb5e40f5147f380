"""The state of a run at one moment: the run, its pool and its pods, read together with the user's own kubeconfig.

Missing objects are None or empty, because objects come and go while a view is shown. If the user may not see the pool
or the pods, they are left out and this is reported. If the user may not see the run, `Forbidden` is raised.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepcoder_client.client import Client
from deepcoder_client.connection import Object
from deepcoder_client.errors import Forbidden
from deepcoder_contracts.labels import pool_of


@dataclass(frozen=True)
class Snapshot:
    """A run with its pool and pods at one moment."""

    run: Object
    pool: Object | None
    pods: tuple[Object, ...]
    withheld: tuple[str, ...] = ()
    """Parts that are left out because a permission is missing."""


def take(client: Client, name: str) -> Snapshot:
    """Read the run with its pool and pods. Raises `NotFound`."""
    run = client.raw(name)
    place, withheld = client.namespace, list[str]()
    pool: Object | None = None
    pods: tuple[Object, ...] = ()
    try:
        pool = client.find_pool(place, known) if (known := pool_of(run)) else None
    except Forbidden as error:
        withheld.append(f"judges are not shown: {error}")
    try:
        pods = tuple(client.pods(name, place))
    except Forbidden as error:
        withheld.append(f"pods are not shown: {error}")
    return Snapshot(run, pool, pods, tuple(withheld))
