"""The objects around a pool's pods: token, Service, NetworkPolicy, PodDisruptionBudget.

They are applied when the spec or the pool's size changes, and again after a while, which repairs objects that were
deleted or edited by hand. An object with our name that does not belong to the pool is never adopted. It raises
`NameConflict`, which the pool's status shows, or `StillEnding` if it is a leftover of an earlier pool with the same
name and goes away by itself.

Successive pools of one run share a token. An attempt that got its quota while the pool was being replaced has mounted
the old pool's token, and the kubelet takes a minute or two to update it. A token never leaves its namespace: anyone who
may create pools in another one can name the run as their owner.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from deepcoder_contracts.api.sandboxpool import SandboxPoolSpec
from deepcoder_operator.builders import pool as builders
from deepcoder_operator.builders.pool import PoolIdentity, PoolSettings
from deepcoder_operator.domain.owners import is_left_over, owned_by
from deepcoder_operator.domain.pool_names import TOKEN_KEY, token_secret_name
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, unless_changed
from deepcoder_operator.kube.resources import BY_KIND, POOLS, SECRETS
from deepcoder_operator.sandbox.tokens import TokenReader, decode_token

REAPPLY_SECONDS = 300.0
"""Time after which objects are applied again although the spec has not changed."""

_TOKEN_BYTES = 32
_REMEMBERED = 2000
"""Number of runs whose pool's token is remembered. For other runs the next pool gets a new token."""


class NameConflict(Exception):
    """An object with the pool's name belongs to something else. The message names it and says how to fix it."""


class StillEnding(Exception):
    """An object with the pool's name is a leftover of an earlier pool, and garbage collection is removing it."""


class PoolObjects:
    """Applies the objects. Remembers when, by the pool's UID, and the tokens of runs' pools, by namespace and run."""

    def __init__(self, kube: Kube, settings: PoolSettings, clock: Callable[[], float]) -> None:
        self._kube, self._settings, self._clock = kube, settings, clock
        self._applied: dict[str, tuple[int, int, float]] = {}
        self._reader = TokenReader(kube, clock)
        self._tokens: OrderedDict[tuple[str, str], tuple[str, str]] = OrderedDict()

    async def ensure(
        self, pool: PoolIdentity, generation: int, spec: SandboxPoolSpec, judges: int, run_uid: str | None = None
    ) -> str:
        """Apply the objects for this generation of the spec and this number of judges, and return the pool's token.

        `run_uid` is the UID of the run that owns the pool, if one does. A deleted token is noticed sooner than other
        deleted objects, because no judge starts without it. Raises `NameConflict`, `StillEnding` or `KubeError`.
        """
        known, size, at = self._applied.get(pool.uid, (0, 0, 0.0))
        if (known, size) == (generation, judges) and self._clock() - at < REAPPLY_SECONDS:
            token = await self._reader.read(pool.namespace, pool.name)
            if token is not None:
                return token
        token = await self._ensure_token(pool, run_uid)
        for obj in (
            builders.build_service(pool),
            builders.build_network_policy(pool, spec, self._settings),
            builders.build_disruption_budget(pool, judges),
        ):
            name = obj["metadata"]["name"]
            found = await self._kube.find(BY_KIND[obj["kind"]], pool.namespace, name)
            self._check_owner(pool, found, obj["kind"], name)
            await self._kube.apply(obj if found is None else unless_changed(obj, found))
        self._applied[pool.uid] = (generation, judges, self._clock())
        return token

    def forget(self, pool: PoolIdentity) -> None:
        """Forget a deleted pool."""
        self._applied.pop(pool.uid, None)
        self._reader.forget(pool.namespace, pool.name)

    async def _ensure_token(self, pool: PoolIdentity, run_uid: str | None) -> str:
        name = token_secret_name(pool.name)
        stored = await self._kube.find(SECRETS, pool.namespace, name)
        if stored is None:
            token = self._token_before(pool, run_uid) or secrets.token_urlsafe(_TOKEN_BYTES)
            try:
                stored = await self._kube.create(builders.build_token_secret(pool, token))
            except errors.AlreadyExists:
                stored = await self._kube.get(SECRETS, pool.namespace, name)
        self._check_owner(pool, stored, "Secret", name)
        found = decode_token(stored)
        if found is None:
            raise NameConflict(f"Secret {name} has no key {TOKEN_KEY}: delete the Secret, a new one is made")
        if run_uid is not None:
            run = (pool.namespace, run_uid)
            self._tokens[run] = (pool.uid, found)
            self._tokens.move_to_end(run)
            if len(self._tokens) > _REMEMBERED:
                self._tokens.popitem(last=False)
        self._reader.forget(pool.namespace, pool.name)
        return found

    def _token_before(self, pool: PoolIdentity, run_uid: str | None) -> str | None:
        """Return the token of the run's previous pool. Deleting the Secret of the same pool yields a new token."""
        uid, token = self._tokens.get((pool.namespace, run_uid or ""), (pool.uid, ""))
        return token if uid != pool.uid else None

    def _check_owner(self, pool: PoolIdentity, obj: Mapping[str, Any] | None, kind: str, name: str) -> None:
        if obj is None or owned_by(obj, pool.uid):
            return
        if is_left_over(obj, POOLS.kind, pool.name):
            raise StillEnding(f"{kind} {name} of the SandboxPool that had this name before is still being removed")
        raise NameConflict(
            f"{kind} {name} exists and does not belong to this pool: delete or rename it, or rename the pool"
        )
