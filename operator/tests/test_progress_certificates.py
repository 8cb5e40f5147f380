"""Certificates: made when absent, renewed before expiry, and trusted by clients that were given an older bundle."""

from __future__ import annotations

import asyncio
import base64
import errno
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from deepcoder_operator.app import Operator
from deepcoder_operator.progress import certificate_store, certificates
from deepcoder_operator.progress.certificate_store import CertificateStore
from deepcoder_operator.progress.certificates import TLSMaterial, renew

HOSTS = ("deepcoder-progress.deepcoder.svc", "localhost", "127.0.0.1")
START = datetime(2026, 1, 1, tzinfo=UTC)


def trusts(bundle: bytes, server: bytes, now: datetime) -> bool:
    """Whether a client with this bundle accepts the server's certificate at this time."""
    store = x509.verification.Store(x509.load_pem_x509_certificates(bundle))
    verifier = x509.verification.PolicyBuilder().store(store).time(now).build_server_verifier(x509.DNSName(HOSTS[0]))
    try:
        verifier.verify(x509.load_pem_x509_certificate(server), [])
    except x509.verification.VerificationError:
        return False
    return True


def test_first_material_is_trusted_by_its_bundle_and_by_openssl() -> None:
    material = renew(None, HOSTS, datetime.now(UTC))
    assert trusts(material.bundle, material.server.certificate, datetime.now(UTC))
    context = ssl.create_default_context(cadata=material.bundle.decode())
    assert len(context.get_ca_certs()) == 1


def test_fresh_material_is_left_alone() -> None:
    material = renew(None, HOSTS, START)
    assert renew(material, HOSTS, START + timedelta(days=30)) is material


def test_server_certificate_is_renewed_before_it_expires() -> None:
    old = renew(None, HOSTS, START)
    new = renew(old, HOSTS, START + timedelta(days=61))
    assert new.authorities == old.authorities
    assert new.server != old.server


def test_other_host_names_make_another_server_certificate() -> None:
    old = renew(None, HOSTS, START)
    assert renew(old, ("other.svc",), START).server != old.server


def test_every_bundle_given_out_stays_good_for_half_a_year() -> None:
    """Walk through 25 years: no client is cut off within 180 days of receiving its bundle."""
    material: TLSMaterial | None = None
    given: list[tuple[datetime, bytes]] = []
    for day in range(0, 25 * 365, 15):
        now = START + timedelta(days=day)
        material = renew(material, HOSTS, now)
        given = [(at, bundle) for at, bundle in given if now - at <= timedelta(days=180)] + [(now, material.bundle)]
        assert all(trusts(bundle, material.server.certificate, now) for bundle in {bundle for _, bundle in given}), now
        assert len(material.authorities) <= 2


def test_stored_material_reads_back_the_same() -> None:
    material = renew(None, HOSTS, START)
    later = renew(material, HOSTS, START + timedelta(days=3300))
    assert len(later.authorities) == 2
    for m in (material, later):
        keys = certificates.authority_keys(m)
        assert certificates.read(m.bundle, keys, m.server.certificate, m.server.key) == m


def test_key_of_another_certificate_is_refused() -> None:
    one, other = renew(None, HOSTS, START), renew(None, HOSTS, START)
    with pytest.raises(ValueError, match="does not belong"):
        certificates.read(one.bundle, certificates.authority_keys(one), one.server.certificate, other.server.key)


@pytest.mark.parametrize("damage", ["locked", "null", "foreign authority"])
def test_secret_that_cannot_be_used_counts_as_none(damage: str) -> None:
    """Otherwise no replica could start again, or a renewal would end them all weeks later."""
    material = renew(None, HOSTS, START)
    data: dict[str, Any] = dict(certificate_store._encode(material))
    key = serialization.load_pem_private_key(material.server.key, None)
    if damage == "locked":
        lock = serialization.BestAvailableEncryption(b"a password")
        locked = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
        data["tls.key"] = base64.b64encode(locked).decode()
    elif damage == "null":
        data["tls.key"] = None
    else:
        data |= dict(zip(("ca.crt", "ca.key"), map(_encoded, _rsa_authority()), strict=True))
    assert certificate_store._decode({"metadata": {"name": "tls"}, "data": data}) is None


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _rsa_authority() -> tuple[bytes, bytes]:
    """An authority that somebody made with another tool: its certificate and key."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "company CA")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(START)
        .not_valid_after(START + timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    plain, pem = serialization.NoEncryption(), serialization.Encoding.PEM
    return certificate.public_bytes(pem), key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)


def test_keys_are_not_world_readable_while_they_are_loaded() -> None:
    modes: list[int] = []

    class Watching(ssl.SSLContext):
        def load_cert_chain(self, certfile: str, keyfile: str | None = None, password: object = None) -> None:
            modes.append(Path(str(keyfile)).stat().st_mode & 0o777)
            super().load_cert_chain(certfile, keyfile)

    certificate_store._load(Watching(ssl.PROTOCOL_TLS_SERVER), renew(None, HOSTS, START))
    assert modes == [0o600]


async def test_full_disk_delays_the_first_certificates_and_ends_no_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory-backed /tmp outlives a restart of the container: the operator would end again and again."""
    full = OSError(errno.ENOSPC, "No space left on device")
    loads: list[OSError | None] = [full, None, full, None]
    waited: list[float] = []

    class Store(CertificateStore):
        async def refresh(self) -> None:
            if not loads:
                raise KeyError("the test is over")
            if (error := loads.pop(0)) is not None:
                raise error

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    store = Store(cast(Any, None), "deepcoder", "tls", HOSTS)
    await Operator._first_certificates(cast(Any, SimpleNamespace(certificates=store)))
    with pytest.raises(KeyError):
        await store.run()
    assert waited == [1.0, 600.0, 600.0, 600.0]
