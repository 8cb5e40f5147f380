"""What a run looks like right now: the run, its pool and its pods, read in one go with the user's own kubeconfig.

What is not there (yet) is None or empty, since a view must not fall over while things come and go. Pool and pods that
the user may not see are left out and said so; a run that the user may not see is raised as `Forbidden`.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepcoder_client.client import Client, pool_of
from deepcoder_client.connection import Object
from deepcoder_client.errors import Forbidden


@dataclass(frozen=True)
class Snapshot:
    """A run and what belongs to it at one moment."""

    run: Object
    pool: Object | None
    pods: tuple[Object, ...]
    withheld: tuple[str, ...] = ()
    """What is not shown for want of a permission."""


def take(client: Client, name: str) -> Snapshot:
    """The run with its pool and pods; raises `NotFound`."""
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
