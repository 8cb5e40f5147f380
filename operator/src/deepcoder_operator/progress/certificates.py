"""Creates and renews the operator's own certificate authority and server certificate. Pure: values in, values out.

A trainer gets the CA bundle when its attempt starts and keeps it until the attempt ends, perhaps weeks later. So a new
authority is published a year before the old one expires, but signs nothing until the old one has less than `OVERLAP`
left. Every bundle that is handed out in between contains both. Server certificates are short-lived and renewed early.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = timedelta(days=3650)
NEXT_AUTHORITY = timedelta(days=365)
"""Remaining life of the newest authority below which the next one is published."""
OVERLAP = timedelta(days=180)
"""Remaining life below which an authority no longer signs. Longer than any attempt lasts."""
SERVER_LIFE = timedelta(days=90)
RENEW_SERVER = timedelta(days=30)
"""Remaining life of the server certificate below which it is renewed."""
_BACKDATE = timedelta(minutes=5)


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes

    @property
    def x509(self) -> x509.Certificate:
        """The certificate, parsed."""
        return x509.load_pem_x509_certificate(self.certificate)


@dataclass(frozen=True)
class TLSMaterial:
    """The server's certificate, and the authorities that its clients must trust."""

    authorities: tuple[KeyPair, ...]
    """Authorities, oldest first. The first one with enough life left signs."""

    server: KeyPair
    """The server's certificate."""

    @property
    def bundle(self) -> bytes:
        """PEM bundle for clients."""
        return b"".join(a.certificate for a in self.authorities)


def renew(material: TLSMaterial | None, hosts: Sequence[str], now: datetime) -> TLSMaterial:
    """Return the material to use from now on: the same object if nothing needs renewal."""
    authorities = tuple(a for a in material.authorities if _left(a, now) > timedelta(0)) if material else ()
    if not authorities or _left(authorities[-1], now) < NEXT_AUTHORITY:
        authorities = (*authorities, _new_authority(now))
    signer = next((a for a in authorities if _left(a, now) >= OVERLAP), authorities[-1])
    server = material.server if material and _serves(material.server, signer, hosts, now) else None
    if material and server and authorities == material.authorities:
        return material
    return TLSMaterial(authorities, server or _new_server(signer, hosts, now))


def read(bundle: bytes, authority_keys: bytes, certificate: bytes, key: bytes) -> TLSMaterial:
    """Parse stored PEM. Raises ValueError if certificates and keys do not match, or if an authority is not ours."""
    certificates = x509.load_pem_x509_certificates(bundle)
    keys = _split_keys(authority_keys)
    if len(certificates) != len(keys):
        raise ValueError(f"the bundle holds {len(certificates)} authorities but there are {len(keys)} keys")
    authorities = tuple(KeyPair(_pem(c), k) for c, k in zip(certificates, keys, strict=True))
    material = TLSMaterial(authorities, KeyPair(certificate, key))
    for pair in (*authorities, material.server):
        private = serialization.load_pem_private_key(pair.key, None)
        if private.public_key() != pair.x509.public_key():
            raise ValueError(f"the key does not belong to the certificate {pair.x509.subject.rfc4514_string()}")
        if pair is not material.server and not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{pair.x509.subject.rfc4514_string()} has no elliptic-curve key to sign renewals with")
    return material


def authority_keys(material: TLSMaterial) -> bytes:
    """Return the keys of the authorities as PEM, in the bundle's order."""
    return b"".join(a.key for a in material.authorities)


def _split_keys(data: bytes) -> list[bytes]:
    marker = b"-----BEGIN PRIVATE KEY-----"
    starts = [i for i in range(len(data)) if data.startswith(marker, i)]
    return [data[a:b] for a, b in pairwise([*starts, len(data)])]


def _left(pair: KeyPair, now: datetime) -> timedelta:
    return pair.x509.not_valid_after_utc - now


def _serves(server: KeyPair, signer: KeyPair, hosts: Sequence[str], now: datetime) -> bool:
    """Whether the server certificate has enough life left, is for these hosts, and was signed by this authority."""
    certificate = server.x509
    if _left(server, now) < RENEW_SERVER:
        return False
    try:
        certificate.verify_directly_issued_by(signer.x509)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return list(names) == _alternative_names(hosts)


def _alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _new_authority(now: datetime) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"deepcoder-operator progress CA {now:%Y-%m-%d}")])
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(_pem(certificate), _key_pem(key))


def _new_server(signer: KeyPair, hosts: Sequence[str], now: datetime) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    authority = signer.x509
    authority_key = serialization.load_pem_private_key(signer.key, None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "deepcoder-operator progress")])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _builder(name, authority.subject, key.public_key(), now, min(SERVER_LIFE, _left(signer, now)))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(hosts)), critical=False)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return KeyPair(_pem(certificate), _key_pem(key))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + life)
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
