"""Bearer tokens of pools, read by the pool's name and cached for a short time. They are never logged.

Others may damage the Secret. If the key is missing or the value is not base64, there is no token, and the caller
recreates the pool's objects or reports it in its status.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from deepcoder_operator.domain.pool_names import TOKEN_KEY, token_secret_name
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import SECRETS

CACHE_SECONDS = 60.0
"""How long a token is cached."""


def decode_token(secret: Object) -> str | None:
    """Return the token in a pool's Secret, or None."""
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
        """Return the pool's token, or None if there is none yet. Raises `KubeError`."""
        key = (namespace, pool)
        at, token = self._cache.get(key, (0.0, None))
        if token is None or self._clock() - at >= CACHE_SECONDS:
            secret = await self._kube.find(SECRETS, namespace, token_secret_name(pool))
            token = decode_token(secret) if secret else None
            self._cache[key] = (self._clock(), token)
        return token

    def forget(self, namespace: str, pool: str) -> None:
        """Forget a deleted pool."""
        self._cache.pop((namespace, pool), None)
