"""The objects around a pool's pods: token, Service, NetworkPolicy, disruption budget.

Applied when the spec or the pool's size has changed and again after a while, which heals what was deleted or edited
by hand. An object of our name that is not the pool's is never taken over: it raises `NameConflict`, which the pool's
status then shows.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from deepcoder_contracts.api.sandboxpool import SandboxPoolSpec
from deepcoder_operator.builders import pool as builders
from deepcoder_operator.builders.pool import PoolIdentity, PoolSettings
from deepcoder_operator.domain.pool_names import TOKEN_KEY, token_secret_name
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import BY_KIND, SECRETS
from deepcoder_operator.sandbox.observe import controller_uid
from deepcoder_operator.sandbox.tokens import decode_token

REAPPLY_SECONDS = 300.0
"""Time after which objects are applied again although the spec has not changed."""

_TOKEN_BYTES = 32


class NameConflict(Exception):
    """An object of the pool's name belongs to somebody else; the message names it and the mend."""


class PoolSupport:
    """Remembers what was applied when, by the pool's UID."""

    def __init__(self, kube: Kube, settings: PoolSettings, clock: Callable[[], float]) -> None:
        self._kube, self._settings, self._clock = kube, settings, clock
        self._applied: dict[str, tuple[int, int, float]] = {}

    async def ensure(self, pool: PoolIdentity, generation: int, spec: SandboxPoolSpec, judges: int) -> None:
        """Bring the objects to what this version of the spec says and a pool of so many judges needs.

        Raises `NameConflict` or `KubeError`.
        """
        known, size, at = self._applied.get(pool.uid, (0, 0, 0.0))
        if (known, size) == (generation, judges) and self._clock() - at < REAPPLY_SECONDS:
            return
        await self._ensure_token(pool)
        for obj in (
            builders.build_service(pool),
            builders.build_network_policy(pool, spec, self._settings),
            builders.build_disruption_budget(pool, judges),
        ):
            name = obj["metadata"]["name"]
            self._check_owner(
                pool, await self._kube.find(BY_KIND[obj["kind"]], pool.namespace, name), obj["kind"], name
            )
            await self._kube.apply(obj)
        self._applied[pool.uid] = (generation, judges, self._clock())

    def forget(self, uid: str) -> None:
        """The pool is gone."""
        self._applied.pop(uid, None)

    async def _ensure_token(self, pool: PoolIdentity) -> None:
        name = token_secret_name(pool.name)
        stored = await self._kube.find(SECRETS, pool.namespace, name)
        if stored is None:
            try:
                await self._kube.create(builders.build_token_secret(pool, secrets.token_urlsafe(_TOKEN_BYTES)))
            except errors.AlreadyExists:
                stored = await self._kube.get(SECRETS, pool.namespace, name)
        self._check_owner(pool, stored, "Secret", name)
        if stored is not None and decode_token(stored) is None:
            raise NameConflict(f"Secret {name} has no key {TOKEN_KEY}: delete the Secret, a new one is made")

    def _check_owner(self, pool: PoolIdentity, obj: dict[str, Any] | None, kind: str, name: str) -> None:
        if obj is not None and controller_uid(obj) != pool.uid:
            raise NameConflict(
                f"{kind} {name} exists and does not belong to this pool: delete or rename it, or rename the pool"
            )
