"""S3 credentials from a Secret, read by name and cached for at most a minute; no list, no watch.

Missing or malformed credentials raise a `StorageProblem` that names the Secret, its key and how to fix it, and that
becomes the run's condition. A failure is not cached, so the next query sees the fix.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable

from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import SECRETS
from deepcoder_operator.storage.s3 import Credentials, StorageProblem

CACHE_SECONDS = 60.0

_ONE_LINE = re.compile(r"[\x20-\x7e]*")
"""Characters that an HTTP header may contain. Keys are sent in one, and a client's error about others would quote the
key."""


class CredentialReader:
    """Reads Secrets for runs."""

    def __init__(self, kube: Kube, clock: Callable[[], float]) -> None:
        self._kube, self._clock = kube, clock
        self._cache: dict[tuple[str, str], tuple[float, Credentials]] = {}
        self._reading: dict[tuple[str, str], asyncio.Task[Credentials]] = {}

    async def read(self, namespace: str, name: str) -> Credentials:
        """Return the credentials in a Secret. Raises `StorageProblem`, which names the Secret and its key, and says how
        to fix it."""
        key = (namespace, name)
        at, kept = self._cache.get(key, (float("-inf"), None))
        if kept is not None and self._clock() - at < CACHE_SECONDS:
            return kept
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.create_task(self._read(namespace, name))
            reading.add_done_callback(lambda _: self._reading.pop(key, None))
        return await asyncio.shield(reading)

    async def _read(self, namespace: str, name: str) -> Credentials:
        """Read a Secret, once for all runs that wait for it: a thousand runs of one team may wake at once."""
        now = self._clock()
        try:
            secret = await self._kube.get(SECRETS, namespace, name)
        except errors.NotFound:
            raise StorageProblem(
                "SecretNotFound", f"Secret {name} does not exist in namespace {namespace}: create it with "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None  # fmt: skip
        except errors.Forbidden as e:
            raise StorageProblem("SecretForbidden", f"the operator may not read Secret {name}: {e}") from e
        except errors.KubeError as e:
            raise StorageProblem("SecretUnreadable", f"Secret {name} cannot be read now: {e}") from e
        credentials = _decode(name, secret)
        self._cache = {k: v for k, v in self._cache.items() if now - v[0] < CACHE_SECONDS}
        self._cache[(namespace, name)] = (now, credentials)
        return credentials

    def forget(self, namespace: str, name: str) -> None:
        """Drop cached credentials that were refused, so that the next query reads the Secret again."""
        self._cache.pop((namespace, name), None)


def _decode(name: str, secret: Object) -> Credentials:
    data = secret.get("data") or {}
    try:
        values = {k: base64.b64decode(v, validate=True).decode() for k, v in data.items()}
    except (binascii.Error, UnicodeDecodeError) as e:
        raise StorageProblem("CredentialsInvalid", f"Secret {name} holds a value that is not text: {e}") from e
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        if not values.get(key):
            raise StorageProblem("CredentialsInvalid", f"Secret {name} has no {key}: add it")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if not _ONE_LINE.fullmatch(values.get(key, "")):
            raise StorageProblem(
                "CredentialsInvalid",
                f"{key} of Secret {name} contains a line break (perhaps at its end) or another character that an HTTP "
                "header cannot hold: write it as one line of printable ASCII",
            )
    return Credentials(
        access_key=values["AWS_ACCESS_KEY_ID"],
        secret_key=values["AWS_SECRET_ACCESS_KEY"],
        session_token=values.get("AWS_SESSION_TOKEN") or None,
        ca=values.get("ca.crt", "").strip() or None,
        source=f"Secret {name}",
    )
