"""Large files go to S3 in parts, a few at a time over one read; what fails is told as what it failed of."""

from __future__ import annotations

import base64
import hashlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError

from deepcoder_trainer.checkpoint import storage_s3
from deepcoder_trainer.checkpoint.errors import ChecksumMismatch, StorageUnavailable
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.storage import TRAFFIC
from deepcoder_trainer.checkpoint.storage_s3 import S3Store
from deepcoder_trainer.checkpoint.transfer import upload_files

pytestmark = pytest.mark.s3

PART = 5 << 20
"""The least that S3 takes but for the last."""


@pytest.fixture
def store(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(storage_s3, "_PART_BYTES", PART)
    return open_storage(f"s3://{s3.bucket}/{uuid4()}", s3.endpoint)


def big_file(tmp_path: Path, parts: int) -> tuple[Path, str]:
    """A file of so many parts, the last one short, and its SHA-256."""
    data = bytes(range(256)) * (((parts - 1) * PART + PART // 2) // 256)
    path = tmp_path / "big"
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def test_each_part_has_its_checksum_and_the_whole_is_what_was_put(store: S3Store, tmp_path: Path) -> None:
    path, sha256 = big_file(tmp_path, 7)
    moved = TRAFFIC.bytes
    stored = store.put_file("big", path)
    assert TRAFFIC.bytes == moved + stored.size, "part by part, so that a slow upload is seen to move"
    assert (stored.size, stored.sha256) == (path.stat().st_size, sha256)
    assert stored.checksum is not None
    assert stored.checksum.endswith("-7")
    assert store.get_file("big", tmp_path / "back") == sha256
    assert TRAFFIC.bytes == moved + 2 * stored.size


def test_a_file_of_more_parts_than_s3_allows_goes_up_in_larger_ones(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_s3, "_MOST_PARTS", 2)
    path, sha256 = big_file(tmp_path, 5)
    stored = store.put_file("big", path)
    assert stored.checksum is not None
    assert stored.checksum.endswith("-2")
    assert stored.sha256 == sha256


def test_parts_are_on_their_way_together_and_no_more_are_read_than_those(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sha256 = big_file(tmp_path, 9)
    upload_part: Callable[..., Any] = store._sender.upload_part
    together = threading.Barrier(storage_s3._PARALLEL_PARTS, action=lambda: read.append(position(path)))
    read: list[int] = []

    def wait_for_the_others(**kwargs: Any) -> Any:
        if kwargs["PartNumber"] <= 8:
            together.wait(30)
        return upload_part(**kwargs)

    monkeypatch.setattr(store._sender, "upload_part", wait_for_the_others)
    assert store.put_file("big", path).sha256 == sha256
    assert len(read) == 2
    assert read[0] <= storage_s3._PARALLEL_PARTS * PART


def position(path: Path) -> int:
    """How far this process has read a file, some time after it could read on."""
    time.sleep(0.2)
    for fd in Path("/proc/self/fd").iterdir():
        if fd.exists() and fd.resolve() == path:
            return int((Path("/proc/self/fdinfo") / fd.name).read_text().split()[1])
    raise AssertionError(f"{path} is not open")


@pytest.mark.parametrize("abort_fails", [False, True])
def test_a_failed_part_is_what_the_upload_fails_of_whatever_becomes_of_giving_it_up(
    abort_fails: bool, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = big_file(tmp_path, 6)
    upload_part: Callable[..., Any] = store._sender.upload_part

    def damaged_second(**kwargs: Any) -> Any:
        if kwargs["PartNumber"] == 2:
            kwargs["ChecksumSHA256"] = base64.b64encode(bytes(32)).decode()
        return upload_part(**kwargs)

    def unreachable(**_: Any) -> Any:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "AbortMultipartUpload")

    monkeypatch.setattr(store._sender, "upload_part", damaged_second)
    if abort_fails:
        monkeypatch.setattr(store._client, "abort_multipart_upload", unreachable)
    with caplog.at_level(logging.WARNING), pytest.raises((ChecksumMismatch, StorageUnavailable)):
        store.put_file("big", path)
    assert store.head("big") is None
    left = store._client.list_multipart_uploads(Bucket=store._bucket, Prefix=store._prefix).get("Uploads", [])
    assert len(left) == abort_fails
    assert ("life-cycle rule" in caplog.text) == abort_fails


def test_a_manifest_names_the_sha256_of_what_was_put(store: S3Store, tmp_path: Path) -> None:
    path, sha256 = big_file(tmp_path, 2)
    small = tmp_path / "small"
    small.write_bytes(b"small")
    entries = upload_files(store, "p", tmp_path, [path, small])
    assert [(e.path, e.sha256) for e in entries] == [("big", sha256), ("small", hashlib.sha256(b"small").hexdigest())]


def test_what_is_put_is_hashed_once_for_its_checksum_which_is_signed(store: Any, tmp_path: Path) -> None:
    sent: dict[str, list[Any]] = {}
    store._sender.meta.events.register(
        "before-send.s3", lambda request, event_name, **_: sent.setdefault(event_name, []).append(request.headers)
    )
    path, _ = big_file(tmp_path, 2)
    store.put_file("big", path)
    store.put_bytes("small", b"small")
    assert {name: len(headers) for name, headers in sent.items()} == {
        "before-send.s3.UploadPart": 2,
        "before-send.s3.PutObject": 1,
    }
    for headers in (each for many in sent.values() for each in many):
        assert headers["X-Amz-Content-SHA256"] == b"UNSIGNED-PAYLOAD"
        signed = headers["Authorization"].decode().partition("SignedHeaders=")[2].partition(",")[0]
        assert "x-amz-checksum-sha256" in signed.split(";")
