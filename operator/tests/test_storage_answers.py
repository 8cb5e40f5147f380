"""What no S3 server on this machine answers: 409 to one of two writes at the same moment, as AWS does, and half an
object."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import broken_tls
import pytest
import refusing_s3
from refusing_s3 import RefusingS3

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.chain import Missing
from deepcoder_contracts.layout import RUN
from deepcoder_contracts.manifest import RunIdentity
from deepcoder_operator.storage.reader import RunFolder, claim_folder
from deepcoder_operator.storage.s3 import Bucket, Buckets, Credentials, Exists, StorageProblem, Target

CODES = ("ConditionalRequestConflict", "OperationAborted")


@pytest.fixture
def server() -> Iterator[RefusingS3]:
    with refusing_s3.running() as made:
        yield made


def bucket(server: RefusingS3) -> Bucket:
    target = Target(server.endpoint, None, Credentials("a", "b", source="Secret s3"))
    return Buckets().open(target, "bucket")


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, at once."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def folder(server: RefusingS3) -> RunFolder:
    uid = "11111111-1111-1111-1111-111111111111"
    run = RunIdentity(namespace="ml", name="demo", uid=uid)
    return RunFolder(bucket(server), "runs/demo", run, sha256_digest(b""))


@pytest.mark.parametrize("code", CODES)
def test_claim_that_met_a_deletion_is_written(code: str, server: RefusingS3, pauses: list[float]) -> None:
    """It counted as claimed: a 409 was taken for an object that is there."""
    server.refusals = [(409, code)] * 2
    claim_folder(folder(server), looked=True)
    assert f"/bucket/runs/demo/{RUN}" in server.objects
    assert len(pauses) == 2


def test_write_that_lost_to_another_finds_that_one(server: RefusingS3) -> None:
    server.objects["/bucket/key"] = b"theirs"
    server.refusals = [(409, "ConditionalRequestConflict")]
    with pytest.raises(Exists, match="s3://bucket/key"):
        bucket(server).put_once("key", b"mine")


def test_conflict_that_does_not_end_is_a_problem_that_names_object_and_server(
    server: RefusingS3, pauses: list[float]
) -> None:
    server.refusals = [(409, "OperationAborted")] * 4
    with pytest.raises(StorageProblem, match=r"s3://bucket/key at http://127\.0\.0\.1:\d+: OperationAborted: no") as e:
        bucket(server).put_once("key", b"mine")
    assert e.value.problem.reason == "StorageFailed"
    assert (len(pauses), server.refusals) == (3, [])
    with pytest.raises(Missing):
        bucket(server).get("key")


def test_connection_that_tls_gives_up_in_the_middle_of_an_object_leaves_storage_unreachable(tmp_path: Path) -> None:
    with broken_tls.running(tmp_path) as (endpoint, certificate):
        credentials = Credentials("a", "b", ca=certificate.read_text(), source="Secret s3")
        there = Buckets().open(Target(endpoint, None, credentials), "bucket")
        for read in (there.get, there.sha256):
            with pytest.raises(StorageProblem, match="broke off its answer") as told:
                read("k")
            assert told.value.problem.reason == "StorageUnreachable"
