"""What counts in a run's folder, against a real S3 server: verified, of this run, and not overtaken."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import s3_server
from plan_world import UID, make_run
from run_folder import CONFIG, RUN, Folder

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.run_spec import FromCheckpoint
from deepcoder_contracts.api.run_status import ProvenanceStatus, RunStatus
from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.chain import Damaged, read_manifest, verify_files
from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.layout import checkpoint_dir, exit_key
from deepcoder_contracts.manifest import ManifestKind, RunIdentity
from deepcoder_operator.domain.query import StorageQuery
from deepcoder_operator.domain.resolve import storage_key
from deepcoder_operator.domain.world import StorageView, StoredStage
from deepcoder_operator.storage import answers, s3
from deepcoder_operator.storage.findings import Findings
from deepcoder_operator.storage.reader import (
    RunFolder,
    check_folder,
    claim_folder,
    read_stage,
    resolve_origin,
)
from deepcoder_operator.storage.s3 import Bucket, Buckets, Credentials, StorageProblem, Target
from deepcoder_operator.storage.service import StorageService, _answer

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.S3Server]:
    program = s3_server.program()
    if program is None:
        pytest.skip("the S3 server has not been built: run `python -m devcluster build`")
    with s3_server.running(tmp_path_factory.mktemp("s3"), program) as made:
        yield made


@pytest.fixture
def folder(server: s3_server.S3Server) -> Folder:
    return Folder(server)


def reader_of(secret: str) -> Any:
    """What reads the runs' Secrets."""

    class Reader:
        async def read(self, *_: str) -> Credentials:
            return Credentials(s3_server.ACCESS, secret, source="Secret s3")

    return Reader()


def run_in(folder: Folder) -> DeepCoderRun:
    """A run whose folder it is."""
    where = {"bucket": s3_server.BUCKET, "prefix": folder.key, "endpoint": folder.server.endpoint}
    return make_run(checkpoint={"s3": where | {"credentialsSecretRef": {"name": "s3"}}})


def newest(folder: Folder) -> tuple[int, int] | None:
    found = folder.read().newest
    return (found.step, found.ordinal) if found else None


def test_what_a_manifest_tells_of_how_it_was_made_is_read(folder: Folder) -> None:
    folder.save(10, 1, versions={"torch": "2.9.0"}, dataset_digest=CONFIG)
    found = folder.read()
    assert (found.versions, found.dataset_digest, found.code_digest) == ({"torch": "2.9.0"}, CONFIG, CONFIG)


def test_newest_committed_checkpoint_counts_and_an_interrupted_one_does_not(folder: Folder) -> None:
    folder.claim(1)
    folder.save(10, 1)
    folder.save(20, 1)
    folder.put(checkpoint_dir("short", 30, 1) + "/w.bin", b"no manifest yet")
    assert newest(folder) == (20, 1)


def test_damaged_checkpoint_is_passed_over_and_named(folder: Folder) -> None:
    folder.save(10, 1)
    folder.save(20, 1)
    folder.put(checkpoint_dir("short", 20, 1) + "/w.bin", b"weights 2x")
    assert newest(folder) == (10, 1)
    assert any("step-000020.a001/w.bin has checksum" in r for r in folder.read().rejected)


def test_missing_and_truncated_files_are_found(folder: Folder) -> None:
    folder.save(10, 1)
    folder.put(checkpoint_dir("short", 10, 1) + "/w.bin", b"short")
    assert any("has 5 bytes, not 10" in r for r in folder.read().rejected)
    folder.client.delete_object(Bucket=s3_server.BUCKET, Key=f"{folder.key}/{checkpoint_dir('short', 10, 1)}/w.bin")
    assert any("is missing" in r for r in folder.read().rejected)


def test_commit_after_a_later_claim_is_ignored(folder: Folder) -> None:
    folder.claim(1)
    folder.save(10, 1)
    folder.claim(2)
    server_time_passes(folder)
    folder.save(20, 1)
    assert newest(folder) == (10, 1)
    assert any("after a later attempt had started" in r for r in folder.read().rejected)


def server_time_passes(folder: Folder) -> None:
    """LastModified has whole seconds: write until the server's clock has moved on."""
    first = folder.put("clock", b"")  # the answer has no time
    assert first
    start = folder.client.head_object(Bucket=s3_server.BUCKET, Key=f"{folder.key}/clock")["LastModified"]
    while True:
        folder.put("clock", b"")
        if folder.client.head_object(Bucket=s3_server.BUCKET, Key=f"{folder.key}/clock")["LastModified"] > start:
            return


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"run": RunIdentity(namespace="ml", name="demo", uid=UID.replace("0", "9"))}, "another run"),
        ({"config_digest": sha256_digest(b"other")}, "another config"),
        ({"stage": "long"}, "says that it is"),
        ({"step": 99}, "says step 99"),
    ],
)
def test_manifest_of_something_else_does_not_count(folder: Folder, change: dict[str, Any], why: str) -> None:
    folder.save(10, 1, **change)
    stored = folder.read()
    assert stored.newest is None
    assert any(why in r for r in stored.rejected)


def test_manifest_that_cannot_be_parsed_does_not_count(folder: Folder) -> None:
    folder.put(checkpoint_dir("short", 10, 1) + "/MANIFEST.json", b"{}")
    assert folder.read().newest is None


def test_exit_record_is_read_by_ordinal(folder: Folder) -> None:
    folder.put(exit_key("short", 2), ExitRecord(code=75, reason="Drained").to_json())
    assert folder.read(1).exit is None
    found = folder.read(2).exit
    assert found is not None
    assert found.code == 75


def test_folder_is_claimed_once_and_another_run_is_told(folder: Folder) -> None:
    claim_folder(folder.run)
    claim_folder(folder.run)
    other = RunIdentity(namespace="ml", name="demo", uid=UID.replace("0", "9"))
    with pytest.raises(StorageProblem, match="belongs to another run") as refusal:
        claim_folder(RunFolder(folder.bucket(), folder.key, other, CONFIG))
    assert refusal.value.problem.reason == "PrefixTaken"
    with pytest.raises(StorageProblem) as refusal:
        claim_folder(RunFolder(folder.bucket(), folder.key, RUN, sha256_digest(b"other")))
    assert refusal.value.problem.reason == "ConfigMismatch"


def test_folder_that_was_looked_at_is_claimed_with_one_request_and_still_never_taken_from_another(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    get = Bucket.get

    def noted(bucket: Bucket, key: str) -> tuple[bytes, datetime]:
        asked.append(key)
        return get(bucket, key)

    monkeypatch.setattr(Bucket, "get", noted)
    claim_folder(folder.run, looked=True)
    assert asked == []
    other = RunIdentity(namespace="ml", name="demo", uid=UID.replace("0", "9"))
    with pytest.raises(StorageProblem, match="belongs to another run"):
        claim_folder(RunFolder(folder.bucket(), folder.key, other, CONFIG), looked=True)
    claim_folder(folder.run, looked=True)


async def test_folder_is_claimed_without_another_look_only_right_after_admission_saw_it_free(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was suspended for a month before its first attempt, or is tried again, looks: others may have come."""
    looks: list[str] = []
    get = Bucket.get

    def noted(bucket: Bucket, key: str) -> tuple[bytes, datetime]:
        looks.append(key)
        return get(bucket, key)

    monkeypatch.setattr(Bucket, "get", noted)
    clock = [1000.0]
    service = StorageService(reader_of(s3_server.SECRET), [], clock=lambda: clock[0])
    run = run_in(folder)
    settled = ProvenanceStatus(image="i", model="m", config_digest=CONFIG, storage="s3://b/p", operator_version="1")
    accepted = run.model_copy(update={"status": RunStatus(provenance=settled)})
    admission = StorageQuery(admission=True)
    try:
        assert await service.answer(run, admission) == StorageView()
        looks.clear()
        await service.claim(accepted)
        assert looks == [], "admission has just looked"
        await service.claim(accepted)
        assert len(looks) == 1, "the first attempt is tried again"
        folder.client.delete_object(Bucket=s3_server.BUCKET, Key=f"{storage_key(run)}/RUN.json")
        assert await service.answer(run, admission) == StorageView()
        clock[0] += 3600
        looks.clear()
        await service.claim(accepted)
        assert len(looks) == 1, "admission looked an hour ago"
    finally:
        service.close()


def test_wrong_secret_missing_bucket_and_dead_server_are_told_apart(folder: Folder) -> None:
    def reason(bucket: Bucket) -> str:
        with pytest.raises(StorageProblem) as refusal:
            claim_folder(RunFolder(bucket, folder.key, RUN, CONFIG))
        return refusal.value.problem.reason

    assert reason(folder.bucket(secret="wrong")) == "CredentialsRefused"
    assert reason(folder.bucket(name="no-such-bucket")) == "BucketNotFound"
    nowhere = Target("http://127.0.0.1:1", None, Credentials("a", "b"))
    assert reason(Buckets().open(nowhere, s3_server.BUCKET)) == "StorageUnreachable"


def test_clock_that_is_wrong_is_told_from_wrong_keys(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def an_hour_ahead(*_: Any) -> datetime:
        return datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1)

    monkeypatch.setattr("botocore.auth.get_current_datetime", an_hour_ahead)
    with pytest.raises(StorageProblem, match="time service") as refusal:
        claim_folder(RunFolder(folder.bucket(), folder.key, RUN, CONFIG))
    assert refusal.value.problem.reason == "ClockSkewed"


@pytest.mark.parametrize(
    ("endpoint", "region", "bucket", "reason", "field"),
    [
        ("http://minio_svc:9000", None, "b", "EndpointInvalid", "checkpoint.s3.endpoint http://minio_svc:9000"),
        ("http://[::1", None, "b", "EndpointInvalid", "checkpoint.s3.endpoint"),
        ("http://127.0.0.1:99999", None, "b", "EndpointInvalid", "checkpoint.s3.endpoint"),
        ("http://127.0.0.1:1", "-", "b", "RegionInvalid", "checkpoint.s3.region -"),
        ("http://127.0.0.1:1", None, "a b", "BucketInvalid", "checkpoint.s3.bucket a b"),
    ],
)
def test_target_that_no_client_can_be_made_for_is_refused_by_field(
    endpoint: str, region: str | None, bucket: str, reason: str, field: str
) -> None:
    with pytest.raises(StorageProblem, match=re.escape(field)) as refusal:
        Buckets().open(Target(endpoint, region, Credentials("a", "b")), bucket).head("key")
    assert refusal.value.problem.reason == reason


def test_payload_of_any_size_is_hashed_in_pieces(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folder.save(10, 1)
    path = f"{folder.key}/{checkpoint_dir('short', 10, 1)}"
    manifest = read_manifest(folder.bucket().get(f"{path}/MANIFEST.json")[0], made.uri)
    monkeypatch.setattr(answers, "MAX_RECORD_BYTES", 1)
    monkeypatch.setattr(answers, "MAX_ANSWER_BYTES", 1)
    monkeypatch.setattr(s3, "_PIECE_BYTES", 4)
    verify_files(folder.bucket(), path, manifest, deep=True)
    wrong = [e.model_copy(update={"sha256": "0" * 64}) for e in manifest.files]
    with pytest.raises(Damaged, match="sha256"):
        verify_files(folder.bucket(), path, manifest.model_copy(update={"files": wrong}), deep=True)


def test_folder_of_a_run_that_is_not_settled_is_looked_at_and_left_alone(folder: Folder) -> None:
    """Until the config is settled in the status, a later release may resolve another: RUN.json must not name one."""
    assert not check_folder(folder.bucket(), folder.key, RUN, None)
    assert folder.bucket().objects(f"{folder.key}/") == []
    claim_folder(folder.run)
    assert check_folder(folder.bucket(), folder.key, RUN, None)
    with pytest.raises(StorageProblem) as refusal:
        check_folder(folder.bucket(), folder.key, RUN, sha256_digest(b"other"))
    assert refusal.value.problem.reason == "ConfigMismatch"


def test_admission_looks_and_leaves_no_trace(folder: Folder) -> None:
    run = make_run(checkpoint={"s3": {"bucket": s3_server.BUCKET, "prefix": folder.key}})
    assert _answer(folder.bucket(), run, StorageQuery(admission=True), Findings()) == StorageView()
    assert folder.bucket().objects(f"{folder.key}/") == []


def asked(folder: Folder) -> list[tuple[str, str]]:
    """Requests that the folder's client sends from now on, by method and key."""
    sent: list[tuple[str, str]] = []
    client: Any = folder.run.bucket._client
    client.meta.events.register(
        "before-send.s3", lambda request, **_: sent.append((request.method, request.url.partition("?")[0]))
    )
    return sent


def test_claims_of_earlier_attempts_are_not_asked_for(folder: Folder) -> None:
    """A run has had up to 999 attempts; only a later one can make a commit too late."""
    for ordinal in range(1, 8):
        folder.claim(ordinal)
    folder.save(10, 7)
    folder.claim(8)  # not before the commit: storage's clock counts whole seconds, and one may end in between
    sent = asked(folder)
    found = folder.read(ordinal=8).newest
    assert found is not None
    assert (found.step, found.ordinal) == (10, 7)
    assert [url.rsplit("/", 2)[-2] for method, url in sent if method == "HEAD" and "claim" in url] == ["008"]


def test_damaged_checkpoint_is_not_looked_at_again_for_a_while(folder: Folder) -> None:
    now = [0.0]
    findings = Findings(lambda: now[0])
    folder.save(10, 1)
    folder.save(20, 1)
    folder.put(checkpoint_dir("short", 20, 1) + "/w.bin", b"weights 2x")

    def look() -> tuple[list[str], StoredStage]:
        sent = asked(folder)
        found = read_stage(folder.run, "short", evaluate=False, ordinal=None, known=frozenset(), findings=findings)
        return [url for method, url in sent if method == "HEAD" and "step-000020" in url], found

    first, second = look(), look()
    assert (len(first[0]), len(second[0])) == (1, 0)
    assert first[1] == second[1]
    folder.put(checkpoint_dir("short", 20, 1) + "/w.bin", b"weights 20")
    now[0] = 300.0
    found = look()[1].newest
    assert found is not None
    assert found.step == 20


async def test_document_is_put_below_the_runs_folder_and_never_replaces_one(folder: Folder) -> None:
    service = StorageService(reader_of(s3_server.SECRET), [])
    run = run_in(folder)
    try:
        await service.put(run, "short/attempts/001/logs/driver.log", b"first")
        await service.put(run, "short/attempts/001/logs/driver.log", b"second")
    finally:
        service.close()
    key = f"{storage_key(run)}/short/attempts/001/logs/driver.log"
    assert folder.bucket().get(key)[0] == b"first"


def test_origin_is_held_to_its_digest(folder: Folder) -> None:
    made = folder.save(10, 1)
    bucket = folder.bucket()
    assert resolve_origin(bucket, FromCheckpoint(uri=made.uri), Findings()) == made
    with pytest.raises(StorageProblem) as refusal:
        resolve_origin(bucket, FromCheckpoint(uri=made.uri, digest=sha256_digest(b"x")), Findings())
    assert refusal.value.problem.reason == "DigestMismatch"
    with pytest.raises(StorageProblem) as refusal:
        resolve_origin(bucket, FromCheckpoint(uri=made.uri + "x"), Findings())
    assert refusal.value.problem.reason == "CheckpointNotFound"


def test_origin_that_is_elsewhere_no_checkpoint_or_damaged_is_refused(folder: Folder) -> None:
    made = folder.save(10, 1)
    of_made: dict[str, Any] = {"kind": ManifestKind.EXPORT, "step": 10, "ordinal": 1, "parent": made}
    export = folder.commit(None, of_made)

    def refusal(uri: str) -> str:
        with pytest.raises(StorageProblem) as refused:
            resolve_origin(folder.bucket(), FromCheckpoint(uri=uri), Findings())
        return str(refused.value)

    elsewhere = made.uri.replace(f"s3://{s3_server.BUCKET}/", "s3://attic/")
    assert refusal(elsewhere) == f"spec.from is in bucket attic: copy it into {s3_server.BUCKET} first"
    assert "is of kind Export, not a checkpoint" in refusal(export.uri)
    folder.put(checkpoint_dir("short", 10, 1) + "/w.bin", b"weights 1x")
    assert "w.bin has checksum" in refusal(made.uri)


def test_delete_takes_the_folder_and_nothing_beside_it(folder: Folder) -> None:
    folder.save(10, 1)
    folder.client.put_object(Bucket=s3_server.BUCKET, Key=f"{folder.key}-beside/x", Body=b"x")
    bucket = folder.bucket()
    keys = bucket.delete_page(f"{folder.key}/", "")
    assert len(keys) == 2
    assert bucket.delete_page(f"{folder.key}/", keys[-1]) == []
    assert bucket.objects(f"{folder.key}/") == []
    assert len(bucket.objects(f"{folder.key}-beside/")) == 1
    for dangerous in ("", "/", folder.key):
        with pytest.raises(ValueError, match="not a folder"):
            bucket.delete_page(dangerous, "")
