"""One behaviour over two stores: a folder, and a real S3 server that checks signatures and checksums."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from botocore.loaders import JSONFileLoader
from botocore.response import StreamingBody

from deepcoder_trainer.checkpoint import storage_s3
from deepcoder_trainer.checkpoint.errors import (
    ChecksumMismatch,
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageUnavailable,
)
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.storage import ObjectStore, join_key, refuse_traversal
from deepcoder_trainer.checkpoint.transfer import upload_files


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "file":
        return open_storage(f"file://{tmp_path}/store")
    server = request.getfixturevalue("s3")
    return open_storage(f"s3://{server.bucket}/{uuid4()}", server.endpoint)


def test_what_is_put_is_got_listed_and_hashed(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"hello")
    store.put_file("a/b/f", tmp_path / "f")
    store.put_bytes("a/g", b"xyz")
    store.put_bytes("ab", b"")
    assert store.get_bytes("a/b/f") == b"hello"
    assert store.get_file("a/b/f", tmp_path / "new/f") == hashlib.sha256(b"hello").hexdigest()
    assert (tmp_path / "new/f").read_bytes() == b"hello"
    assert store.sha256("a/g") == (3, hashlib.sha256(b"xyz").hexdigest())
    assert [(o.key, o.size) for o in store.list("a/")] == [("a/b/f", 5), ("a/g", 3)]
    assert [o.key for o in store.list("a")] == ["a/b/f", "a/g", "ab"]
    assert store.list("none/") == []


def test_a_range_is_read_whole_or_not_at_all(store: ObjectStore) -> None:
    store.put_bytes("a/k", b"0123456789")
    assert [store.get_range("a/k", start, size) for start, size in [(0, 10), (3, 4), (9, 1), (4, 0)]] == [
        b"0123456789",
        b"3456",
        b"9",
        b"",
    ]
    for start, size in [(8, 3), (10, 1)]:
        with pytest.raises(StorageUnavailable, match="a/k"):
            store.get_range("a/k", start, size)
    with pytest.raises(ObjectMissing):
        store.get_range("a/none", 0, 1)


def test_of_a_server_that_ignores_the_range_no_more_is_read_than_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of an object may be gigabytes, and several ranges are asked for at once."""

    class Sent(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            Sent.taken += len(data)
            return data

    class Server:
        def get_object(self, **_asked: Any) -> dict[str, Any]:
            return {"Body": StreamingBody(Sent(bytes(1 << 20)), 1 << 20)}

    store = open_storage("s3://bucket/x", "http://127.0.0.1:9")
    monkeypatch.setattr(store, "_made", Server())
    with pytest.raises(StorageUnavailable, match="x/k: 9 bytes came of the 8 from 4 on"):
        store.get_range("k", 4, 8)
    assert Sent.taken == 9


def test_a_put_replaces_and_a_conditional_put_does_not(store: ObjectStore) -> None:
    store.put_bytes("k", b"1")
    store.put_bytes("k", b"2")
    with pytest.raises(ObjectExists):
        store.put_bytes("k", b"3", if_absent=True)
    assert store.get_bytes("k") == b"2"


def test_a_conditional_put_repeated_with_the_same_content_has_succeeded(store: ObjectStore) -> None:
    store.put_bytes("k", b"1", if_absent=True)
    assert store.put_bytes("k", b"1", if_absent=True).size == 1


def test_what_is_not_there_is_told_as_missing(store: ObjectStore, tmp_path: Path) -> None:
    assert store.head("none") is None
    for call in (store.get_bytes, store.sha256, lambda k: store.get_file(k, tmp_path / "x")):
        with pytest.raises(ObjectMissing, match="none"):
            call("none")


def test_a_folder_is_deleted_but_for_what_is_kept_and_nothing_beside_it(store: ObjectStore) -> None:
    for key in ("a/1", "a/b/2", "a/keep", "ab/3"):
        store.put_bytes(key, b"x")
    assert store.delete_prefix("a/", keep=frozenset({"a/keep"})) == 2
    assert [o.key for o in store.list("")] == ["a/keep", "ab/3"]


@pytest.mark.parametrize("key", ["../x", "a/../../x", "a//b", "", "/a", "./a"])
def test_keys_cannot_leave_the_root(key: str, store: ObjectStore) -> None:
    with pytest.raises(ValueError, match="segment"):
        store.put_bytes(key, b"x")


@pytest.mark.parametrize("uri", ["file:///nowhere", "s3://bucket/prefix"])
def test_a_key_that_leaves_the_root_makes_no_file_of_what_it_names(uri: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("content")
    with pytest.raises(ValueError, match="segment"):
        open_storage(uri, "http://127.0.0.1:9").get_file("a/../../precious", tmp_path / "a/../precious")
    assert precious.read_text() == "content"
    assert not (tmp_path / "a").exists()


def test_a_file_store_hides_writes_that_never_ended_until_what_is_around_them_is_deleted(tmp_path: Path) -> None:
    store = open_storage(f"file://{tmp_path}")
    for folder in ("a", "a/b", "c"):
        store.put_bytes(f"{folder}/k", b"x")
        (tmp_path / folder / "dead.tmp").write_bytes(b"half")
    assert [o.key for o in store.list("a/")] == ["a/b/k", "a/k"]
    store.delete_prefix("a", keep=frozenset({"a/k"}))
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["k"]
    assert (tmp_path / "c/dead.tmp").exists()


def test_a_file_store_takes_no_copy_that_is_not_what_was_put_and_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_storage(f"file://{tmp_path}/store")
    (tmp_path / "f").write_bytes(b"weights")
    monkeypatch.setattr(shutil, "copyfile", lambda _source, target: Path(target).write_bytes(b"weighty"))
    with pytest.raises(ChecksumMismatch, match="a/f: the copy differs"):
        store.put_file("a/f", tmp_path / "f")
    store.put_bytes("a/m", b"{}", if_absent=True)
    assert [path.name for path in (tmp_path / "store" / "a").iterdir()] == ["m"]


def test_an_object_that_is_not_as_long_as_its_file_is_no_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_storage(f"file://{tmp_path}/store")
    (tmp_path / "f").write_bytes(b"weights")
    put = store.put_file
    monkeypatch.setattr(store, "put_file", lambda key, path: replace(put(key, path), size=1))
    with pytest.raises(ChecksumMismatch, match="a/f has 1 bytes after its upload"):
        upload_files(store, "a", tmp_path, [tmp_path / "f"])


def test_a_file_store_has_an_object_on_the_disk_before_it_has_its_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed takes the place of older checkpoints: a machine that loses power must not lose both."""
    flushed: list[tuple[str, list[str]]] = []

    def fsync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        named = sorted(p.name for p in (root / "a" / "b").glob("*") if p.suffix != ".tmp")
        flushed.append((path.suffix or path.name, named))

    monkeypatch.setattr(os, "fsync", fsync)
    root = tmp_path / "root"
    store = open_storage(f"file://{root}")
    (tmp_path / "file").write_bytes(b"weights")
    store.put_file("a/b/file", tmp_path / "file")
    store.put_bytes("a/b/manifest", b"{}", if_absent=True)
    assert flushed == [
        *((new, []) for new in (tmp_path.name, "root", "a")),
        (".tmp", []),
        ("b", ["file"]),
        (".tmp", ["file"]),
        ("b", ["file", "manifest"]),
    ]


def test_keys_are_joined_without_empty_segments() -> None:
    assert join_key("", "a/", "/b") == "a/b"
    assert refuse_traversal("a/b/") == "a/b/"


@pytest.mark.parametrize("uri", ["gs://b/x", "s3:///x", "/tmp/x", "file://host/x"])
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="neither s3://"):
        open_storage(uri)


@pytest.mark.s3
def test_s3_keeps_the_checksum_that_was_sent(s3: Any, tmp_path: Path) -> None:
    store = open_storage(f"s3://{s3.bucket}/{uuid4()}", s3.endpoint)
    expected = base64.b64encode(hashlib.sha256(b"hello").digest()).decode()
    assert store.put_bytes("k", b"hello").checksum == expected
    found = store.head("k")
    assert found is not None
    assert found.checksum == expected


@pytest.mark.s3
def test_s3_refuses_content_that_is_not_what_its_checksum_says(
    s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = open_storage(f"s3://{s3.bucket}/{uuid4()}", s3.endpoint)

    class Wrong:
        def __init__(self, data: bytes) -> None: ...

        def digest(self) -> bytes:
            return bytes(32)

    monkeypatch.setattr(storage_s3.hashlib, "sha256", Wrong)
    with pytest.raises(ChecksumMismatch):
        store.put_bytes("k", b"hello")
    monkeypatch.undo()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    assert store.head("k") is None


@pytest.mark.s3
@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_s3_refuses_wrong_credentials_and_the_message_does_not_repeat_them(
    name: str, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "not-the-right-one")
    store = open_storage(f"s3://{s3.bucket}/x", s3.endpoint)
    for call in (lambda: store.put_bytes("k", b"1"), lambda: store.get_bytes("k"), lambda: store.list("")):
        with pytest.raises(StorageDenied) as e:
            call()
        assert "not-the-right-one" not in str(e.value)


@pytest.mark.s3
def test_a_bucket_that_does_not_exist_is_not_taken_for_an_empty_one(s3: Any) -> None:
    with pytest.raises(StorageDenied, match="NoSuchBucket"):
        open_storage("s3://no-such-bucket/x", s3.endpoint).list("")


@pytest.mark.s3
def test_s3_without_credentials_says_which_variables_to_set(
    s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageDenied, match="AWS_ACCESS_KEY_ID"):
        open_storage(f"s3://{s3.bucket}/x", s3.endpoint).list("")


@pytest.mark.parametrize("name", ["AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"])
def test_a_key_with_a_line_break_is_told_by_its_variable_and_not_quoted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", name: "marked-value\n"}
    for each, value in values.items():
        monkeypatch.setenv(each, value)
    with pytest.raises(StorageUnavailable, match="line break in AWS_ACCESS_KEY_ID") as e:
        open_storage("s3://b/p", "http://127.0.0.1:9").head("k")
    assert "marked-value" not in "".join(traceback.format_exception(e.value))


def test_a_server_that_is_not_there_is_unavailable_within_bounded_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setattr(storage_s3, "_ATTEMPTS", 2)
    with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1:9"):
        open_storage("s3://bucket/x", "http://127.0.0.1:9").get_bytes("k")


def test_clients_of_a_process_share_what_is_known_of_s3_and_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    read: list[str] = []
    load = JSONFileLoader.load_file
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda self, path: read.append(path) or load(self, path))
    users, reads = [], []
    for name in ("first", "second"):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", name)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        client = open_storage("s3://bucket/run", endpoint="http://127.0.0.1:1")._client  # type: ignore[attr-defined]
        users.append(client._request_signer._credentials.access_key)
        reads.append(len(read))
    assert users == ["first", "second"]
    assert reads[0] == reads[1], read
