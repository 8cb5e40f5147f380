"""The operator's S3 client: small reads, HEADs, conditional puts, and deletion of a prefix.

Blocking, for threads. Every request has timeouts and botocore's bounded retries. Remaining errors are raised as
`StorageProblem`, whose CamelCase reason and message, which says how to fix the problem, become a condition.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sized
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointProviderError,
    HTTPClientError,
    InvalidRegionError,
    ParamValidationError,
    SSLError,
)
from botocore.session import Session
from urllib3.exceptions import HTTPError

from deepcoder_contracts.chain import Missing
from deepcoder_operator.domain.world import Problem
from deepcoder_operator.metrics import STORAGE_REQUESTS
from deepcoder_operator.storage import answers
from deepcoder_operator.storage.authorities import Authorities, Authority
from deepcoder_operator.storage.botocore_loader import SlimLoader

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

_CONNECT_SECONDS = 5
_READ_SECONDS = 15
_ATTEMPTS = 3
_CONFLICT_PAUSES = (0.25, 0.5, 1.0)
"""Seconds before each repetition of a write that met another write of the same object."""
_CLIENTS = 64
_PIECE_BYTES = 1024 * 1024

UNREACHABLE = "StorageUnreachable"
"""Reason of a problem with the server, not with the run: the server did not answer."""

MAX_LISTED = 50_000
"""Largest number of objects or folders in a listing: more would not fit into memory for many runs at once."""

_LONGEST_NAME = 100
"""Longest name, in characters, of a folder of a run's."""

_REFUSED = {
    *("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"),
    *("AuthorizationHeaderMalformed", "403", "Forbidden"),
}

_SKEWED = {"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"}


class StorageProblem(Exception):
    """Storage cannot be used. Carries the `Problem`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(reason, message)


class Exists(Exception):
    """A conditional put failed because the object exists."""


class _Conflict(StorageProblem):
    """Another write of the same object is in progress. S3 does not say which of them wins: repeat the request."""


@dataclass(frozen=True)
class Credentials:
    """The credentials in a Secret."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    ca: str | None = field(default=None, repr=False)
    """PEM bundle for servers with a certificate authority of their own."""
    source: str = ""
    """Where the credentials come from, for messages."""


@dataclass(frozen=True)
class Target:
    """A server, and the credentials for it."""

    endpoint: str | None
    region: str | None
    credentials: Credentials


@dataclass(frozen=True)
class Stored:
    """An object as storage reports it."""

    key: str
    size: int
    modified: datetime
    checksum: str | None = None


class Unheard(Exception):
    """The caller no longer waits for the answer, so no further request is sent."""


class Line:
    """Connects a caller and the thread of its query: says whether the caller still waits and whether the server has
    answered."""

    def __init__(self) -> None:
        self.gone = threading.Event()
        self.answered = False


@dataclass(frozen=True)
class _Made:
    """A client, and the file that it reads at each new connection."""

    client: S3Client
    authority: Authority | None


class Bucket:
    """A bucket at a target."""

    def __init__(self, made: _Made, target: Target, name: str, line: Line | None = None) -> None:
        """Once the caller at the other end of `line` no longer waits, every method raises `Unheard`."""
        self._made, self._client, self._target, self.name, self._line = made, made.client, target, name, line or Line()

    @property
    def place(self) -> tuple[str | None, str | None, str]:
        """Server and bucket, which tell it from all others."""
        return self._target.endpoint, self._target.region, self.name

    def get(self, key: str) -> tuple[bytes, datetime]:
        """Return a document and the time of its commit. Raises `Missing`, and `StorageProblem` if it is too large."""
        with self._translated(key):
            answer = self._client.get_object(Bucket=self.name, Key=key)
            with closing(answer["Body"]) as body:
                return answers.read(body, answers.most_of(key)), answer["LastModified"]

    def sha256(self, key: str) -> str:
        """Return the SHA-256 of an object of any size, which is read in pieces. Raises `Missing`."""
        found = hashlib.sha256()
        with self._translated(key), closing(self._client.get_object(Bucket=self.name, Key=key)["Body"]) as body:
            for piece in body.iter_chunks(_PIECE_BYTES):
                self._answered()
                found.update(piece)
        return found.hexdigest()

    def head(self, key: str) -> Stored:
        """Return size and checksum of an object. Raises `Missing`."""
        with self._translated(key):
            a = self._client.head_object(Bucket=self.name, Key=key, ChecksumMode="ENABLED")
            return Stored(key, a["ContentLength"], a["LastModified"], a.get("ChecksumSHA256"))

    def put_once(self, key: str, data: bytes) -> None:
        """Write an object unless it exists. Raises `Exists`."""
        for pause in _CONFLICT_PAUSES:
            try:
                self._put_once(key, data)
                return
            except _Conflict:
                time.sleep(pause)
        self._put_once(key, data)

    def _put_once(self, key: str, data: bytes) -> None:
        with self._translated(key):
            self._client.put_object(Bucket=self.name, Key=key, Body=data, IfNoneMatch="*", ChecksumAlgorithm="SHA256")

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below a prefix, which must end in a slash."""
        with self._translated(prefix):
            names: list[str] = []
            for page in self._pages(Bucket=self.name, Prefix=prefix, Delimiter="/"):
                found = (p["Prefix"].rstrip("/").rsplit("/", 1)[-1] for p in page.get("CommonPrefixes", []))
                names += [name for name in found if len(name) <= _LONGEST_NAME]
                _check_number(names)
            return names

    def objects(self, prefix: str) -> list[Stored]:
        """Return all objects below a prefix."""
        with self._translated(prefix):
            found: list[Stored] = []
            for page in self._pages(Bucket=self.name, Prefix=prefix):
                found += [Stored(o["Key"], o["Size"], o["LastModified"]) for o in page.get("Contents", [])]
                _check_number(found)
            return found

    def _pages(self, **listed: str) -> Iterator[ListObjectsV2OutputTypeDef]:
        for page in self._client.get_paginator("list_objects_v2").paginate(**listed):  # type: ignore[arg-type]
            self._answered()
            yield page

    def delete_page(self, prefix: str, after: str) -> list[str]:
        """Delete one page of the objects below a prefix, which must end in a slash, and after a key.

        Returns the deleted keys; none if there was nothing left.
        """
        if not prefix.strip("/") or not prefix.endswith("/"):
            raise ValueError(f"{prefix!r} is not a folder")
        with self._translated(prefix):
            page = self._client.list_objects_v2(Bucket=self.name, Prefix=prefix, StartAfter=after)
            keys = [o["Key"] for o in page.get("Contents", [])]
            if not keys:
                return []
            self._answered()
            objects = [{"Key": key} for key in keys]
            answer = self._client.delete_objects(Bucket=self.name, Delete={"Objects": objects, "Quiet": True})  # type: ignore[typeddict-item]
            if answer.get("Errors"):
                first = answer["Errors"][0]
                raise StorageProblem(
                    "DeletionRefused",
                    f"{first.get('Key')}: {first.get('Message')}: allow it s3:DeleteObject, or delete the run with "
                    "artifacts: Retain",
                )
            return keys

    def _answered(self) -> None:
        """Note that the server has answered, before the next request of the same query."""
        self._line.answered = True
        self._check_heard()

    def _check_heard(self) -> None:
        if self._line.gone.is_set():
            raise Unheard(self.name)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Translate botocore's errors into ours."""
        self._check_heard()
        where = f"s3://{self.name}/{key}"
        server = self._target.endpoint or "AWS"
        source = self._target.credentials.source
        try:
            yield
            self._line.answered = True
        except ClientError as e:
            self._line.answered = True
            code = e.response.get("Error", {}).get("Code", "")
            text = e.response.get("Error", {}).get("Message", "")
            if code in ("NoSuchKey", "NotFound", "404"):
                raise Missing(where) from e
            if code == "NoSuchBucket":
                raise StorageProblem(
                    "BucketNotFound", f"bucket {self.name} does not exist at {server}: create it, or fix checkpoint.s3"
                ) from e
            if code in ("PreconditionFailed", "412"):
                raise Exists(where) from e
            if e.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == HTTPStatus.CONFLICT:
                raise _Conflict("StorageFailed", f"{where} at {server}: {code}: {text}") from e
            if code in _REFUSED:
                raise StorageProblem(
                    "CredentialsRefused", f"{server} refuses {source} for {where} ({code}): fix its keys or permissions"
                ) from e
            if code in _SKEWED:
                text = (
                    f"{server} refuses requests signed with a clock that differs from its own ({code}): check the time "
                    "service of the operator's node and of the server"
                )
                raise StorageProblem("ClockSkewed", text) from e
            raise StorageProblem("StorageFailed", f"{where} at {server}: {code}: {text}") from e
        except answers.TooLarge as e:
            text = f"{where} at {server} {e}, which nothing of a run has: something else was put there, remove it"
            raise StorageProblem("DocumentTooLarge", text) from e
        except SSLError as e:
            raise StorageProblem(
                "StorageUntrusted",
                f"the certificate of {server} is not trusted: put its authority into ca.crt of {source}",
            ) from e
        except ParamValidationError as e:
            raise StorageProblem("BucketInvalid", f"checkpoint.s3.bucket {self.name} is not a valid name: {e}") from e
        except EndpointProviderError as e:
            raise _endpoint_invalid(self._target) from e
        except BotoCoreError as e:
            # HTTPClientError quotes any library's message, perhaps headers with keys. Its subclasses quote addresses.
            text = "" if type(e) is HTTPClientError else f": {e}"
            raise StorageProblem(UNREACHABLE, f"{server} cannot be reached: {type(e).__name__}{text}") from e
        except HTTPError as e:  # in the middle of a body, botocore passes on what TLS says of a broken connection
            raise StorageProblem(UNREACHABLE, f"{server} broke off its answer: {type(e).__name__}") from e


_MAKING = threading.Lock()
"""Held while the session creates a client. Callers that find an existing client do not wait for it."""


@functools.cache
def _session() -> Session:
    """Return the session that creates all clients. Each session would load its own description of S3."""
    made = Session()
    made.register_component("data_loader", SlimLoader())
    return made


class Buckets:
    """Opens buckets, and keeps the most recently used clients with their connections. Thread-safe."""

    def __init__(self, vet: Callable[[str], None] = lambda url: None) -> None:
        """`vet` is called with the URL of each request, and raises if the server must not be contacted."""
        self._vet = vet
        self._lock = threading.Lock()
        self._authorities = Authorities()
        self._clients: OrderedDict[str, _Made] = OrderedDict()

    def open(self, target: Target, bucket: str, line: Line | None = None) -> Bucket:
        """Return a bucket. Sends no request. See `Bucket` for `line`."""
        c = target.credentials
        parts = (target.endpoint, target.region, c.access_key, c.secret_key, c.session_token, c.ca)
        key = hashlib.sha256(repr(parts).encode()).hexdigest()
        made = self._known(key)
        if made is None:
            with _MAKING:
                made = self._known(key) or self._keep(key, self._make(target))
        return Bucket(made, target, bucket, line)

    def _known(self, key: str) -> _Made | None:
        with self._lock:
            if key in self._clients:
                self._clients.move_to_end(key)
            return self._clients.get(key)

    def _keep(self, key: str, made: _Made) -> _Made:
        with self._lock:
            self._clients[key] = made
            if len(self._clients) > _CLIENTS:
                self._clients.popitem(last=False)
        return made

    def _make(self, target: Target) -> _Made:
        credentials = target.credentials
        authority = self._authority(credentials)
        try:
            client = _session().create_client(
                "s3",
                endpoint_url=target.endpoint,
                region_name=target.region or "us-east-1",
                aws_access_key_id=credentials.access_key,
                aws_secret_access_key=credentials.secret_key,
                aws_session_token=credentials.session_token,
                verify=authority.path if authority else None,
                config=Config(
                    connect_timeout=_CONNECT_SECONDS,
                    read_timeout=_READ_SECONDS,
                    retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
                    s3={"addressing_style": "path" if target.endpoint else "auto"},
                ),
            )
            client.meta.events.register("before-send.s3", lambda request, **_: self._vet(request.url))
            client.meta.events.register("before-send.s3", _count)
            answers.BoundedSession.put_into(client)
            return _Made(cast("S3Client", client), authority)
        except InvalidRegionError as e:
            raise StorageProblem(
                "RegionInvalid", f"checkpoint.s3.region {target.region} is not a region: use one such as us-east-1"
            ) from e
        except (ValueError, BotoCoreError) as e:
            raise _endpoint_invalid(target) from e

    def _authority(self, credentials: Credentials) -> Authority | None:
        try:
            return self._authorities.file(credentials.ca) if credentials.ca else None
        except ValueError as e:
            raise StorageProblem("CredentialsInvalid", f"ca.crt of {credentials.source} {e}") from e
        except OSError as e:
            text = f"the operator has no room for ca.crt of {credentials.source}: restart it ({e})"
            raise StorageProblem("StorageFailed", text) from e


def _check_number(listed: Sized) -> None:
    if len(listed) > MAX_LISTED:
        raise answers.TooLarge(f"has more than {MAX_LISTED} entries")


def _count(request: AWSPreparedRequest, **_: object) -> None:
    STORAGE_REQUESTS.labels(method=request.method).inc()


def _endpoint_invalid(target: Target) -> StorageProblem:
    return StorageProblem(
        "EndpointInvalid",
        f"checkpoint.s3.endpoint {target.endpoint} is not the URL of an S3 server: use http(s)://host[:port], with "
        "only letters, digits, '-' and '.' in the host",
    )
