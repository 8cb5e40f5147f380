"""Reads a bucket with the user's own credentials or those of the run's Secret.

Credentials are looked for in this order: the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, a web identity), the Secret
that `checkpoint.s3.credentialsSecretRef` names if the user may read it, then whatever botocore finds. This module
writes nothing. Each request has a deadline and botocore's bounded retries; what remains is raised as `StorageError`
with the fix.

A server that reads on behalf of others must not use its own identity. It uses `secret_credentials` only, and passes
`Limits`, so that its environment cannot name a server, and no object costs more than the limits say.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    CredentialRetrievalError,
    InvalidConfigError,
    LoginError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    RefreshWithMFAUnsupportedError,
    SSLError,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
)
from urllib3.exceptions import HTTPError

from deepcoder_client.connection import SECRETS, Connection
from deepcoder_client.errors import Forbidden, NotFound, StorageError, StorageFault
from deepcoder_contracts.api.run_spec import S3
from deepcoder_contracts.chain import Missing
from deepcoder_contracts.uris import names_this_machine

_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 5, 30, 3
_PIECE_BYTES = 1 << 20
_OWN = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
_REFUSED = {
    *("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403"),
    *("AuthorizationHeaderMalformed", "Forbidden"),
}
_UNUSABLE = (
    *(ConfigNotFound, ConfigParseError, CredentialRetrievalError, InvalidConfigError, LoginError),
    *(PartialCredentialsError, ProfileNotFound, RefreshWithMFAUnsupportedError, SSOError, TokenRetrievalError),
    UnknownCredentialError,
)
"""Errors of the user's own AWS configuration and logins. No request has been sent."""
_LOGINS = ((LoginError, "aws login"), ((SSOError, TokenRetrievalError), "aws sso login"))
_QUOTED = 300
"""Characters kept of what botocore says of credentials: a program that provides them may have said a lot."""


@dataclass(frozen=True)
class Credentials:
    """Access keys and where they come from. Without keys, botocore looks for credentials itself."""

    source: str
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    ca: str | None = field(default=None, repr=False)
    hint: str = ""
    """Why the run's own credentials are not used; appended to the message if the server refuses these."""


@dataclass(frozen=True)
class Stored:
    """An object in storage."""

    key: str
    size: int
    modified: datetime
    checksum: str | None = None
    etag: str = ""


@dataclass(frozen=True)
class Limits:
    """Limits for a server that reads what others have stored."""

    document_bytes: int
    """Largest manifest, record or results file in bytes."""
    data_bytes: int
    """Largest metrics or samples file in bytes."""
    objects: int
    """Most objects listed below one prefix."""
    seconds: float
    """Longest time in seconds until an object or a list has arrived, even if the server keeps sending slowly."""
    vet: Callable[[str], None] = lambda url: None
    """Called with each URL before a request; raises if it is not allowed."""


def credentials(connection: Connection, namespace: str, s3: S3) -> Credentials:
    """Return the user's own credentials, else the run's, in the order that the module docstring gives."""
    if named := next((name for name in _OWN if os.environ.get(name)), None):
        return Credentials(f"your own credentials ({named})")
    reference = s3.credentials_secret_ref
    if reference is None:
        return Credentials("your own credentials")
    try:
        return secret_credentials(connection, namespace, s3)
    except Forbidden as error:
        hint = f"; the run's own are in Secret {reference.name}, but {error}"
        return Credentials("your own credentials", hint=hint)
    except NotFound:
        return Credentials("your own credentials", hint=f"; the run's Secret {reference.name} does not exist")


def secret_credentials(connection: Connection, namespace: str, s3: S3) -> Credentials:
    """Return the credentials in the run's Secret. Raises `StorageError`, `Forbidden` and `NotFound`."""
    reference = s3.credentials_secret_ref
    if reference is None:
        raise StorageError(
            "the run names no Secret with credentials (checkpoint.s3.credentialsSecretRef): its pods have their own",
            StorageFault.NO_CREDENTIALS,
        )
    secret = connection.get(SECRETS, namespace, reference.name)
    try:
        data = {k: base64.b64decode(v, validate=True).decode().strip() for k, v in (secret.get("data") or {}).items()}
        access, key = data["AWS_ACCESS_KEY_ID"], data["AWS_SECRET_ACCESS_KEY"]
    except (KeyError, binascii.Error, UnicodeDecodeError) as error:
        raise StorageError(
            f"Secret {reference.name} of {namespace} holds no usable keys: {error}", StorageFault.NO_CREDENTIALS
        ) from error
    return Credentials(
        f"Secret {reference.name}", access, key, data.get("AWS_SESSION_TOKEN") or None, data.get("ca.crt") or None
    )


class Bucket:
    """Read-only access to a bucket, with the interface that `deepcoder_contracts.chain` needs."""

    def __init__(self, s3: S3, access: Credentials, endpoint: str | None = None, limits: Limits | None = None) -> None:
        """Open the bucket. `endpoint` replaces the run's if this machine reaches the server at another URL."""
        self.name, self.limits = s3.bucket, limits
        self._access = access
        named = None if limits else endpoint or os.environ.get("AWS_ENDPOINT_URL_S3")
        self._server = named or s3.endpoint
        verify: str | None = None
        if access.ca:
            self._files = tempfile.TemporaryDirectory(prefix="deepcoder-client-")
            bundle = Path(self._files.name) / "ca.crt"
            bundle.write_text(access.ca)
            verify = str(bundle)
        with self._translated(""):
            try:
                here = self._server is not None and names_this_machine(self._server)
                self._client: Any = _session().create_client(
                    "s3", endpoint_url=self._server, region_name=s3.region or os.environ.get("AWS_REGION", "us-east-1"),
                    aws_access_key_id=access.access_key, aws_secret_access_key=access.secret_key,
                    aws_session_token=access.session_token, verify=verify,
                    config=Config(
                        connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS,
                        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
                        s3={"addressing_style": "path" if self._server else "auto"},
                        proxies={} if here else None,  # the environment's proxies are for other hosts
                        ignore_configured_endpoint_urls=limits is not None,  # type: ignore[call-arg]  # not in the stubs
                    ),
                )  # fmt: skip
            except ValueError as error:
                raise StorageError(f"{self._server} is not a URL of an S3 server: {error}") from error
        if limits:
            self._client.meta.events.register("before-send.s3", lambda request, **_: limits.vet(request.url))

    def get(self, key: str, *, data: bool = False) -> tuple[bytes, datetime]:
        """Return an object and when it was stored. `data` allows the larger size of data files. Raises `Missing`."""
        with self._translated(key):
            answer = self._client.get_object(Bucket=self.name, Key=key)
            with closing(answer["Body"]) as body:
                if self.limits:
                    most = self.limits.data_bytes if data else self.limits.document_bytes
                    return _read(body, int(answer["ContentLength"]), most, self.limits.seconds), answer["LastModified"]
                return body.read(), answer["LastModified"]

    def head(self, key: str) -> Stored:
        """Return an object's size and checksum. Raises `Missing`."""
        with self._translated(key):
            a = self._client.head_object(Bucket=self.name, Key=key, ChecksumMode="ENABLED")
            return Stored(key, a["ContentLength"], a["LastModified"], a.get("ChecksumSHA256"), a.get("ETag", ""))

    def sha256(self, key: str) -> str:
        """Return the SHA-256 of an object, which is read in parts and may have any size. Raises `Missing`."""
        found = hashlib.sha256()
        with self._translated(key), closing(self._client.get_object(Bucket=self.name, Key=key)["Body"]) as body:
            for piece in body.iter_chunks(_PIECE_BYTES):
                found.update(piece)
        return found.hexdigest()

    def objects(self, prefix: str) -> list[Stored]:
        """Return all objects below a prefix."""
        with self._translated(prefix):
            listed = self._pages("Contents", Bucket=self.name, Prefix=prefix)
            return [Stored(o["Key"], o["Size"], o["LastModified"], etag=o.get("ETag", "")) for o in listed]

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below a prefix that ends in a slash."""
        with self._translated(prefix):
            listed = self._pages("CommonPrefixes", Bucket=self.name, Prefix=prefix, Delimiter="/")
            return [p["Prefix"].rstrip("/").rsplit("/", 1)[-1] for p in listed]

    def _pages(self, part: str, **asked: str) -> list[Any]:
        """Return the entries of all pages of a listing. Raises `StorageError` beyond the limits."""
        found: list[Any] = []
        end = time.monotonic() + self.limits.seconds if self.limits else None
        for page in self._client.get_paginator("list_objects_v2").paginate(**asked):
            found += page.get(part, [])
            if self.limits and len(found) > self.limits.objects:
                raise StorageError(f"more than {self.limits.objects} objects to list", StorageFault.TOO_LARGE)
            if end and time.monotonic() > end:
                raise StorageError("the listing of objects did not finish in time", StorageFault.UNREACHABLE)
        return found

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Raise botocore's errors as `Missing` or `StorageError`."""
        where, server, access = f"s3://{self.name}/{key}", self._server or "AWS", self._access
        try:
            yield
        except ClientError as error:
            told = error.response.get("Error", {})
            code = told.get("Code", "")
            if code in ("NoSuchKey", "NotFound", "404"):
                raise Missing(where) from error
            if code == "NoSuchBucket":
                raise StorageError(
                    f"{server} has no bucket {self.name}: is this the server of the run? See --endpoint",
                    StorageFault.NO_BUCKET,
                ) from error
            if code == "AuthorizationHeaderMalformed" and (told.get("Region") or "region" in told.get("Message", "")):
                region = told.get("Region") or "that of the bucket"
                raise StorageError(
                    f"{server} serves s3://{self.name} in another region ({told.get('Message', '')}): set "
                    f"checkpoint.s3.region of the run to {region}",
                    StorageFault.REFUSED,
                ) from error
            if code in _REFUSED:
                raise StorageError(
                    f"{server} refuses {access.source} for {where} ({code}): set others with AWS_ACCESS_KEY_ID and "
                    f"AWS_SECRET_ACCESS_KEY, or AWS_PROFILE{access.hint}",
                    StorageFault.REFUSED,
                ) from error
            raise StorageError(f"{where} at {server}: {code}: {told.get('Message', '')}") from error
        except NoCredentialsError as error:
            raise StorageError(
                f"no credentials for {where}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                f"AWS_PROFILE{access.hint}",
                StorageFault.NO_CREDENTIALS,
            ) from error
        except _UNUSABLE as error:
            raise StorageError(
                f"your own credentials cannot be used for {where}: {' '.join(str(error).split())[:_QUOTED]}: "
                f"{_way_to_renew(error)}set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name another profile in "
                f"AWS_PROFILE{access.hint}",
                StorageFault.NO_CREDENTIALS,
            ) from error
        except SSLError as error:
            raise StorageError(
                f"the certificate of {server} is not trusted: name its authority in AWS_CA_BUNDLE",
                StorageFault.UNTRUSTED,
            ) from error
        except BotoCoreError as error:
            raise StorageError(
                f"{server} cannot be reached from here ({type(error).__name__}): if it has another address outside "
                "the cluster, set it with --endpoint or AWS_ENDPOINT_URL_S3",
                StorageFault.UNREACHABLE,
            ) from error
        except HTTPError as error:  # in the middle of a body, botocore passes on what TLS says of a broken connection
            raise StorageError(
                f"{server} broke off its answer ({type(error).__name__}): try again", StorageFault.UNREACHABLE
            ) from error


def _way_to_renew(error: BotoCoreError) -> str:
    """Return the command that logs in again, for a message, if the error is of a login that has ended."""
    command = next((command for kinds, command in _LOGINS if isinstance(error, kinds)), None)
    if command is None:
        return ""
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    return f"run `{command}{f' --profile {profile}' if profile else ''}`, or "


def _session() -> botocore.session.Session:
    """Return a new session, because threads cannot share one. It does not parse the description of S3 again."""
    made = botocore.session.get_session()
    made.register_component("data_loader", _descriptions())
    return made


@cache
def _descriptions() -> Any:
    """Return botocore's loader of the descriptions of AWS's services, which keeps those that it has parsed."""
    return botocore.session.get_session().get_component("data_loader")


def _read(body: Any, size: int, most: int, seconds: float) -> bytes:
    """Return an object's content. Stop if it exceeds `most` bytes or does not arrive within `seconds`."""
    if size > most:
        raise StorageError(f"an object of {size} bytes is larger than {most}", StorageFault.TOO_LARGE)
    cut = threading.Timer(seconds, _cut, (body,))
    cut.daemon = True
    cut.start()
    try:
        pieces, read = [], 0
        while piece := body.read(_PIECE_BYTES):
            pieces.append(piece)
            read += len(piece)
            if read > most:
                raise StorageError("an object is larger than its server said", StorageFault.TOO_LARGE)
        return b"".join(pieces)
    finally:
        cut.cancel()


def _cut(body: Any) -> None:
    """End a transfer that another thread waits for, by shutting down its socket."""
    with suppress(AttributeError, OSError):
        body._raw_stream._fp.fp.raw._sock.shutdown(socket.SHUT_RDWR)
