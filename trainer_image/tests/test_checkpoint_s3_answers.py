"""Answers of S3 servers that no server on this machine gives: what is tried again, and after how long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import broken_tls
import pytest
import refusing_s3
from refusing_s3 import RefusingS3

from deepcoder_trainer.checkpoint.errors import ObjectExists, StorageUnavailable
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.storage import ObjectStore


@pytest.fixture
def server() -> Iterator[RefusingS3]:
    with refusing_s3.running() as made:
        yield made


@pytest.fixture
def store(server: RefusingS3, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    return open_storage("s3://bucket/run", server.endpoint)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, at once."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("refusal", [(503, "SlowDown"), (500, "InternalError"), (503, "ServiceUnavailable")])
@pytest.mark.usefixtures("pauses")
def test_a_server_that_is_away_for_a_moment_is_asked_again(
    refusal: tuple[int, str], server: RefusingS3, store: ObjectStore
) -> None:
    server.refusals = [refusal] * 4
    assert store.put_bytes("RUN.json", b"mine", if_absent=True).size == 4


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted", "ConcurrentModification"])
@pytest.mark.parametrize("if_absent", [True, False])
def test_a_write_that_meets_another_is_repeated_after_growing_pauses(
    code: str, if_absent: bool, server: RefusingS3, store: ObjectStore, pauses: list[float]
) -> None:
    """AWS has two names for it. Asked again at once, all tries may fall into the time of the other write."""
    server.refusals = [(409, code)] * 3
    assert store.put_bytes("MANIFEST.json", b"mine", if_absent=if_absent).size == 4
    assert [low <= pause <= 2 * low for low, pause in zip((0.25, 0.5, 1.0), pauses, strict=True)] == [True] * 3


@pytest.mark.usefixtures("pauses")
def test_a_write_that_lost_to_another_finds_that_one(server: RefusingS3, store: ObjectStore) -> None:
    server.objects["/bucket/run/MANIFEST.json"] = b"theirs"
    server.refusals = [(409, "ConditionalRequestConflict")]
    with pytest.raises(ObjectExists, match="PreconditionFailed"):
        store.put_bytes("MANIFEST.json", b"mine", if_absent=True)


def test_a_conflict_that_does_not_end_is_given_up(server: RefusingS3, store: ObjectStore, pauses: list[float]) -> None:
    server.refusals = [(409, "OperationAborted")] * 5
    with pytest.raises(StorageUnavailable, match="OperationAborted") as e:
        store.put_bytes("k", b"mine")
    assert type(e.value) is StorageUnavailable, "by which name an attempt's end is told"
    assert (len(pauses), server.refusals) == (4, [])


def test_more_objects_than_an_answer_or_a_request_holds_are_listed_and_deleted(
    server: RefusingS3, store: ObjectStore
) -> None:
    server.objects = {f"/bucket/run/old/{number:04d}": b"x" for number in range(2001)} | {"/bucket/run/older": b"x"}
    assert [o.key for o in store.list("old/")] == [f"old/{number:04d}" for number in range(2001)]
    assert store.delete_prefix("old/", keep=frozenset({"old/1500"})) == 2000
    assert sorted(server.objects) == ["/bucket/run/old/1500", "/bucket/run/older"]


def test_an_object_that_a_server_would_not_delete_is_told_though_the_request_succeeded(
    server: RefusingS3, store: ObjectStore
) -> None:
    server.objects = {f"/bucket/run/old/{number}": b"x" for number in range(3)}
    server.locked = {"run/old/1"}
    with pytest.raises(StorageUnavailable, match="old/: 1 objects could not be deleted"):
        store.delete_prefix("old/")


def test_a_connection_that_tls_gives_up_in_the_middle_of_an_object_may_be_better_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with broken_tls.running(tmp_path) as (endpoint, certificate):
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        store = open_storage("s3://bucket/run", endpoint)
        for read in (
            lambda: store.get_file("k", tmp_path / "file"),
            lambda: store.get_bytes("k"),
            lambda: store.get_range("k", 0, 100),
            lambda: store.sha256("k"),
        ):
            with pytest.raises(StorageUnavailable, match="SSL"):
                read()
