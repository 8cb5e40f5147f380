"""Keeps the certificates in the operator's own Secret, so that it serves under the same CA after a restart.

The Secret is created if it does not exist, renewed before expiry, and read again on a timer. Every write carries the
resourceVersion that was read, so one of two replicas wins and the other uses the winner's content. A Secret that is
deleted or inconsistent is recreated from the certificates in use, because running heads trust only the authority with
which they started. To get another authority, delete the Secret and restart the replicas. While the API server cannot be
reached, or /tmp is full, the current certificates stay in use.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm

from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import SECRETS
from deepcoder_operator.progress import certificates
from deepcoder_operator.progress.certificates import TLSMaterial

log = logging.getLogger(__name__)

REREAD_SECONDS = 600.0
"""Time, in seconds, between two reads of the Secret."""

_ATTEMPTS = 5
_CA, _CA_KEY, _CERT, _KEY = "ca.crt", "ca.key", "tls.crt", "tls.key"


class CertificateStore:
    """Holds the server's TLS context, and the CA bundle with which clients verify it."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        secret: str,
        hosts: Sequence[str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`hosts` are the names and addresses under which trainers reach the server."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._kube, self._namespace, self._secret = kube, namespace, secret
        self._hosts, self._now = tuple(hosts), now
        self._material: TLSMaterial | None = None

    @property
    def bundle(self) -> str:
        """PEM bundle of the authorities. Available only after the first `refresh`."""
        if self._material is None:
            raise RuntimeError("the certificates have not been loaded yet: await refresh() first")
        return self._material.bundle.decode()

    async def refresh(self) -> None:
        """Read the Secret, create or renew its content if needed, and serve with it. Raises `KubeError`, and
        OSError if there is no room for temporary files."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                material = await self._settle()
                break
            except (errors.AlreadyExists, errors.Conflict):
                if attempt == _ATTEMPTS:
                    raise
                log.info("another replica has written %s/%s, reading it again", self._namespace, self._secret)
        if material != self._material:
            await asyncio.to_thread(_load, self.context, material)
            self._material = material
            log.info("serving progress with a certificate valid until %s", material.server.x509.not_valid_after_utc)

    async def run(self) -> None:
        """Refresh on a timer until cancelled."""
        while True:
            await asyncio.sleep(REREAD_SECONDS)
            try:
                await self.refresh()
            except (errors.KubeError, OSError) as e:
                log.warning("certificates could not be read or renewed; the current ones stay in use: %s", e)

    async def _settle(self) -> TLSMaterial:
        stored = await self._kube.find(SECRETS, self._namespace, self._secret)
        old = _decode(stored) if stored else None
        if old is None and self._material is not None:
            log.warning("Secret %s/%s is lost, putting it back", self._namespace, self._secret)
        new = certificates.renew(old or self._material, self._hosts, self._now())
        if stored is None:
            await self._kube.create(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "type": "Opaque",
                    "metadata": {
                        "namespace": self._namespace,
                        "name": self._secret,
                        "labels": {"app.kubernetes.io/managed-by": "deepcoder-operator"},
                    },
                    "data": _encode(new),
                }
            )
        elif new != old:
            version = stored["metadata"]["resourceVersion"]
            patch = {"metadata": {"resourceVersion": version}, "data": _encode(new)}
            await self._kube.patch(SECRETS, self._namespace, self._secret, patch)
        return new


def _encode(material: TLSMaterial) -> dict[str, str]:
    content = {
        _CA: material.bundle,
        _CA_KEY: certificates.authority_keys(material),
        _CERT: material.server.certificate,
        _KEY: material.server.key,
    }
    return {name: base64.b64encode(value).decode() for name, value in content.items()}


def _decode(secret: Object) -> TLSMaterial | None:
    data = secret.get("data") or {}
    try:
        bundle, keys, certificate, key = (base64.b64decode(data[name]) for name in (_CA, _CA_KEY, _CERT, _KEY))
        return certificates.read(bundle, keys, certificate, key)
    except (KeyError, ValueError, TypeError, UnsupportedAlgorithm) as e:  # TypeError: a value is null, a key locked
        log.warning("Secret %s does not hold usable certificates (%s), making new ones", secret["metadata"]["name"], e)
        return None


def _load(context: ssl.SSLContext, material: TLSMaterial) -> None:
    """Use the certificate for new handshakes. ssl loads it only from files, so it is written to temporary ones."""
    with tempfile.TemporaryDirectory() as directory:
        certificate, key = Path(directory) / "tls.crt", Path(directory) / "tls.key"
        certificate.write_bytes(material.server.certificate)
        key.touch(mode=0o600)
        key.write_bytes(material.server.key)
        context.load_cert_chain(certificate, key)
