"""Bearer tokens of pools, read by name and kept for a short time; never logged.

The Secret is somebody else's to damage: without a key, or with what is no base64, there is no token, and whoever asked
has the pool's objects made anew or says so in its status.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from deepcoder_operator.domain.pool_names import TOKEN_KEY, token_secret_name
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import SECRETS

CACHE_SECONDS = 60.0
"""Time for which a token is not read again."""


def decode_token(secret: Object) -> str | None:
    """The token in a pool's Secret, None if it holds none."""
    try:
        return base64.b64decode((secret.get("data") or {})[TOKEN_KEY], validate=True).decode().strip() or None
    except (KeyError, ValueError, binascii.Error):
        return None


class TokenReader:
    """Reads tokens by the name of the pool."""

    def __init__(self, kube: Kube, clock: Callable[[], float]) -> None:
        self._kube, self._clock = kube, clock
        self._cache: dict[tuple[str, str], tuple[float, str | None]] = {}

    async def read(self, namespace: str, pool: str) -> str | None:
        """The pool's token, None if there is none yet; raises `KubeError`."""
        key = (namespace, pool)
        at, token = self._cache.get(key, (0.0, None))
        if token is None or self._clock() - at >= CACHE_SECONDS:
            secret = await self._kube.find(SECRETS, namespace, token_secret_name(pool))
            token = decode_token(secret) if secret else None
            self._cache[key] = (self._clock(), token)
        return token

    def forget(self, namespace: str, pool: str) -> None:
        """The pool is gone."""
        self._cache.pop((namespace, pool), None)
