"""Certificates, keys and kubeconfigs of one cluster, from `up` to `down`.

Every component has its own identity, as RBAC expects. Only root can read the keys. Nothing is kept from one `up` to the
next, so nothing has to be renewed.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = datetime.timedelta(days=365)
_PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Authority:
    """A certificate authority that issues into one directory."""

    def __init__(self, directory: Path, common_name: str, file_name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = _subject(common_name, None)
        self._certificate = (
            _certificate(name, name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=True,
                    crl_sign=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        _write_pair(directory, file_name, self._key, self._certificate)

    def issue(
        self, file_name: str, common_name: str, organization: str | None = None, serves: Sequence[str] = ()
    ) -> None:
        """Write `file_name`.crt and .key: a client certificate, also a server's for the names in `serves`."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if serves else [])]
        builder = (
            _certificate(_subject(common_name, organization), self._certificate.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        )
        if serves:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_alternative(s) for s in serves]), critical=False
            )
        _write_pair(self._directory, file_name, key, builder.sign(self._key, hashes.SHA256()))


def create(directory: Path, node_name: str, node_ip: str, service_ip: str, inside: str) -> None:
    """Write the cluster's certificates and its components' kubeconfigs, which reach the API server at `inside`."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    ca = Authority(directory, "kubernetes-ca", "ca")
    ca.issue("apiserver", "kube-apiserver", serves=[*names, "localhost", "127.0.0.1", service_ip, node_ip])
    ca.issue("apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
    ca.issue("kubelet-serving", f"system:node:{node_name}", "system:nodes", serves=[node_name, node_ip, "127.0.0.1"])
    for file_name, common_name, organization in (
        ("admin", "kubernetes-admin", "system:masters"),
        ("kube-controller-manager", "system:kube-controller-manager", None),
        ("kube-scheduler", "system:kube-scheduler", None),
        ("kube-proxy", "system:kube-proxy", None),
        ("kubelet", f"system:node:{node_name}", "system:nodes"),
        ("kube-router", "kube-router", None),
    ):
        ca.issue(file_name, common_name, organization)
        write_kubeconfig(directory, file_name, inside, directory / f"{file_name}.kubeconfig")
    Authority(directory, "front-proxy-ca", "front-proxy-ca").issue("front-proxy-client", "front-proxy-client")
    signer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _write_secret(directory / "service-accounts.key", _private(signer))
    public = signer.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (directory / "service-accounts.pub").write_bytes(public)


def write_kubeconfig(directory: Path, identity: str, server: str, target: Path) -> None:
    """Write a kubeconfig (as JSON, which is YAML) that holds the certificate and key of `identity`."""

    def inline(name: str) -> str:
        return base64.b64encode((directory / name).read_bytes()).decode()

    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "devcluster", "cluster": {"server": server, "certificate-authority-data": inline("ca.crt")}}
        ],
        "users": [
            {
                "name": identity,
                "user": {
                    "client-certificate-data": inline(f"{identity}.crt"),
                    "client-key-data": inline(f"{identity}.key"),
                },
            }
        ],
        "contexts": [{"name": "devcluster", "context": {"cluster": "devcluster", "user": identity}}],
        "current-context": "devcluster",
    }
    _write_secret(target, json.dumps(content, indent=1).encode())


def _subject(common_name: str, organization: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(began)
        .not_valid_after(began + _VALID)
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private(key: _PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_pair(directory: Path, name: str, key: _PrivateKey, certificate: x509.Certificate) -> None:
    _write_secret(directory / f"{name}.key", _private(key))
    (directory / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _write_secret(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)
