"""S3 as an object store: explicit time-outs, bounded retries, and SHA-256 on every byte that is put.

boto3 itself retries connection errors, time-outs, throttling and server errors, up to `_ATTEMPTS` times. Errors that
remain are raised as our own types, by what the caller must do. boto3 does not retry a conflict with another write of
the same key (409), so a put does, after pauses. Files above `_PART_BYTES` are read once and uploaded in parts, a few at
a time, each with its own checksum, so a file takes no more memory than those few parts. A failed upload is aborted. An
upload that was killed leaves parts, which only a life-cycle rule of the bucket removes. If an endpoint is given,
addressing is by path, because servers other than AWS rarely have a wildcard host name.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from urllib3.exceptions import HTTPError

from deepcoder_trainer.checkpoint.errors import (
    ChecksumMismatch,
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageUnavailable,
)
from deepcoder_trainer.checkpoint.storage import CHUNK, TRAFFIC, StoredObject, refuse_traversal, whole

if TYPE_CHECKING:
    from botocore.loaders import Loader
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_ATTEMPTS = 5
_PAUSE_SECONDS = 0.5
"""Upper bound of the first pause after a conflict, doubled each time. At least half of it is waited, at random."""
_CONNECT_SECONDS = 5
_READ_SECONDS = 60
_PART_BYTES = 8 << 20
_PARALLEL_PARTS = 4
"""Parts of one file that are in memory and uploaded at a time; `transfer` also uploads several files at a time."""
_MOST_PARTS = 10_000
"""S3's limit of parts per object."""

_DENIED = {
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "NoSuchBucket",
    "SignatureDoesNotMatch",
    "XAdminUserNotFound",  # versitygw's code for an unknown access key
}
_MISSING = {"NoSuchKey", "NotFound", "404"}
_CONFLICT = {"PreconditionFailed", "412"}
_CHECKSUM = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}

log = logging.getLogger(__name__)


@functools.cache
def _descriptions() -> Loader:
    """Return botocore's description of S3, which is parsed once per process, because each time takes 0.05 s of CPU.
    Clients do not share credentials."""
    return botocore.session.Session().get_component("data_loader")


class S3Store:
    """An `ObjectStore` in a bucket, below a prefix."""

    def __init__(self, bucket: str, prefix: str, *, endpoint: str | None, region: str | None) -> None:
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        self._endpoint = endpoint
        self._region = region
        self.uri = f"s3://{bucket}" + (f"/{self._prefix}" if self._prefix else "")
        self._lock = threading.Lock()
        self._made: S3Client | None = None
        self._made_sender: S3Client | None = None

    def put_file(self, key: str, path: Path) -> StoredObject:
        """See `ObjectStore`."""
        if path.stat().st_size > _PART_BYTES:
            sha256 = self._put_parts(key, path)
            return replace(self._must_head(key), sha256=sha256)
        return self._put(key, path.read_bytes())

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> StoredObject:
        """See `ObjectStore`."""
        if not if_absent:
            return self._put(key, data)
        try:
            return self._put(key, data, IfNoneMatch="*")
        except ObjectExists:
            if self.get_bytes(key) != data:
                raise
            return self._must_head(key)

    def get_bytes(self, key: str) -> bytes:
        """See `ObjectStore`."""
        with self._translated(key):
            return self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"].read()

    def get_range(self, key: str, start: int, size: int) -> bytes:
        """See `ObjectStore`."""
        if size == 0:
            return b""  # an HTTP range cannot be empty
        span = f"bytes={start}-{start + size - 1}"
        asked: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key(key), "Range": span}
        with self._translated(key), closing(self._client.get_object(**asked)["Body"]) as body:
            data = body.read(size + 1)  # a server that ignores the range sends the whole object
        return whole(f"{self.uri}/{key}", start, size, data)

    def get_file(self, key: str, path: Path) -> str:
        """See `ObjectStore`."""
        refuse_traversal(key)  # before writing: the caller may have derived `path` from the key
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("wb") as out:
            for chunk in self._chunks(key):
                out.write(chunk)
                digest.update(chunk)
        return digest.hexdigest()

    def sha256(self, key: str) -> tuple[int, str]:
        """See `ObjectStore`."""
        digest, size = hashlib.sha256(), 0
        for chunk in self._chunks(key):
            digest.update(chunk)
            size += len(chunk)
        return size, digest.hexdigest()

    def head(self, key: str) -> StoredObject | None:
        """See `ObjectStore`."""
        try:
            with self._translated(key):
                answer = self._client.head_object(Bucket=self._bucket, Key=self._key(key), ChecksumMode="ENABLED")
        except ObjectMissing:
            return None
        return StoredObject(key, answer["ContentLength"], answer["LastModified"], answer.get("ChecksumSHA256"))

    def unfinished(self, prefix: str) -> list[StoredObject]:
        """Return nothing: S3 shows no object before it is whole, and parts are for the bucket's lifecycle rules."""
        return []

    def list(self, prefix: str) -> list[StoredObject]:
        """See `ObjectStore`."""
        root = f"{self._prefix}/" if self._prefix else ""
        found = []
        with self._translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=root + prefix)
            for page in pages:
                for item in page.get("Contents", []):
                    key = item["Key"].removeprefix(root)
                    found.append(StoredObject(key, item["Size"], item["LastModified"]))
        return sorted(found, key=lambda o: o.key)

    def delete_prefix(self, prefix: str, *, keep: frozenset[str] = frozenset()) -> int:
        """See `ObjectStore`."""
        refuse_traversal(prefix)
        doomed = [o.key for o in self.list(prefix.rstrip("/") + "/") if o.key not in keep]
        for start in range(0, len(doomed), 1000):
            keys = doomed[start : start + 1000]
            with self._translated(prefix):
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": [{"Key": self._key(k)} for k in keys], "Quiet": True}
                )
            if errors := answer.get("Errors"):
                raise StorageUnavailable(f"{self.uri}/{prefix}: {len(errors)} objects could not be deleted")
        return len(doomed)

    @property
    def _client(self) -> S3Client:
        with self._lock:
            self._made = self._made or self._connect(sign_payloads=None)
            return self._made

    @property
    def _sender(self) -> S3Client:
        """The client for puts. Their SHA-256 is a signed header, so the signature need not hash the payload again."""
        with self._lock:
            self._made_sender = self._made_sender or self._connect(sign_payloads=False)
            return self._made_sender

    def _connect(self, *, sign_payloads: bool | None) -> S3Client:
        session = botocore.session.Session()
        session.register_component("data_loader", _descriptions())
        return boto3.session.Session(botocore_session=session).client(
            "s3",
            endpoint_url=self._endpoint,
            region_name=self._region or "us-east-1",
            config=Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
                s3={
                    "addressing_style": "path" if self._endpoint else "auto",
                    **({} if sign_payloads is None else {"payload_signing_enabled": sign_payloads}),
                },
                max_pool_connections=16,
            ),
        )

    def _key(self, key: str) -> str:
        refuse_traversal(key)
        return f"{self._prefix}/{key}" if self._prefix else key

    def _must_head(self, key: str) -> StoredObject:
        stored = self.head(key)
        if stored is None:
            raise ObjectMissing(f"{self.uri}/{key} is gone right after it was written")
        return stored

    def _put(self, key: str, data: bytes, **conditions: Any) -> StoredObject:
        digest = hashlib.sha256(data)
        checksum = base64.b64encode(digest.digest()).decode()
        for attempt in range(_ATTEMPTS):
            try:
                with self._translated(key):
                    self._sender.put_object(
                        Bucket=self._bucket, Key=self._key(key), Body=data, ChecksumSHA256=checksum, **conditions
                    )
                break
            except _Conflict as conflict:
                # Another write of the same key is in flight: S3 demands that the request be repeated.
                if attempt == _ATTEMPTS - 1:
                    raise StorageUnavailable(str(conflict)) from conflict.__cause__
                time.sleep(_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1))
        return replace(self._must_head(key), sha256=digest.hexdigest())

    def _put_parts(self, key: str, path: Path) -> str:
        """Upload a file in parts. Return the SHA-256 of the whole file, hexadecimal."""
        part_bytes = max(_PART_BYTES, -(-path.stat().st_size // _MOST_PARTS))
        whole = hashlib.sha256()
        parts: list[CompletedPartTypeDef] = []
        under_way: deque[Future[CompletedPartTypeDef]] = deque()
        with self._translated(key):
            where: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key(key)}
            where["UploadId"] = self._client.create_multipart_upload(**where, ChecksumAlgorithm="SHA256")["UploadId"]
            try:
                with path.open("rb") as f, ThreadPoolExecutor(_PARALLEL_PARTS) as pool:
                    for number in itertools.count(1):
                        if len(under_way) == _PARALLEL_PARTS:
                            parts.append(under_way.popleft().result())
                        if not (data := f.read(part_bytes)):
                            break
                        under_way.append(pool.submit(self._put_part, where, number, data))
                        whole.update(data)
                    parts += [part.result() for part in under_way]
                self._client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
            except BaseException:  # the pool has ended, so no part is in flight any more
                self._abort(where)
                raise
        return whole.hexdigest()

    def _put_part(self, where: dict[str, Any], number: int, data: bytes) -> CompletedPartTypeDef:
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        answer = self._sender.upload_part(**where, PartNumber=number, Body=data, ChecksumSHA256=checksum)
        TRAFFIC.add(len(data))
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

    def _abort(self, where: dict[str, Any]) -> None:
        """Abort a failed upload. An error here is only logged: the caller must get the original one."""
        try:
            self._client.abort_multipart_upload(**where)
        except (ClientError, BotoCoreError) as e:
            log.warning("%s: its parts stay until a life-cycle rule removes them: %s", where["Key"], e)

    def _chunks(self, key: str) -> Iterator[bytes]:
        with self._translated(key):
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"]
            for chunk in body.iter_chunks(CHUNK):
                TRAFFIC.add(len(chunk))
                yield chunk

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        where = f"{self.uri}/{key}"
        try:
            yield
        except ClientError as e:
            raise _translate(where, e) from e
        except BotoCoreError as e:
            # Messages of botocore name the endpoint and the cause, never a key or a secret. The exception is this
            # class itself, not its subclasses: it quotes a library's error, which may contain a session token.
            if type(e) is HTTPClientError:
                raise StorageUnavailable(
                    f"{where}: the request could not be made: look for a line break in AWS_ACCESS_KEY_ID, "
                    "AWS_SECRET_ACCESS_KEY or AWS_SESSION_TOKEN"
                ) from None
            if type(e).__name__ in {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}:
                raise StorageDenied(f"{where}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from e
            raise StorageUnavailable(f"{where}: {e}") from e
        except HTTPError as e:  # in the middle of a body, botocore passes on what TLS says of a broken connection
            raise StorageUnavailable(f"{where}: {e}") from e


class _Conflict(StorageUnavailable):
    """A concurrent write of the same key (ConditionalRequestConflict on AWS, OperationAborted elsewhere)."""


def _translate(where: str, error: ClientError) -> StorageError:
    details = error.response.get("Error", {})
    code = str(details.get("Code", "Unknown"))
    message = f"{where}: {code}: {details.get('Message', '')}"
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in _DENIED or status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return StorageDenied(message)
    if code in _MISSING:
        return ObjectMissing(message)
    if code in _CONFLICT:
        return ObjectExists(message)
    if code in _CHECKSUM:
        return ChecksumMismatch(message)
    if status == HTTPStatus.CONFLICT:
        return _Conflict(message)
    return StorageUnavailable(message)
