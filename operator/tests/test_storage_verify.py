"""`deepcoder-operator verify` finds whatever was changed in a chain of checkpoints, after the fact or by a forger."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import s3_server
from run_folder import CONFIG, RUN, Folder

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.chain import Damaged, walk_chain
from deepcoder_contracts.manifest import ManifestKind, ParentRef, RunRecord
from deepcoder_operator.__main__ import main
from deepcoder_operator.storage.reader import claim_folder
from deepcoder_operator.storage.s3 import Bucket

pytestmark = pytest.mark.s3

OTHER = RUN.model_copy(update={"uid": "99999999-89ab-4cde-8f01-23456789abcd"})


@dataclass
class Chain:
    """A stage of two attempts, a second stage, and its export."""

    folder: Folder
    first: ParentRef
    second: ParentRef
    third: ParentRef
    export: ParentRef

    def walk(self, digest: str | None = None, **options: bool) -> list[int]:
        key = self.export.uri.removeprefix(f"s3://{s3_server.BUCKET}/")
        return [link.manifest.step for link in walk_chain(self.folder.run.bucket, key, digest, **options)]

    def put(self, of: ParentRef, name: str, data: bytes) -> None:
        self.folder.put(f"{self.below(of)}/{name}", data)

    def below(self, of: ParentRef) -> str:
        return of.uri.removeprefix(f"s3://{s3_server.BUCKET}/{self.folder.key}/")


LONG: dict[str, Any] = {"stage": "long", "stage_index": 1}


def chain_of(folder: Folder, **forged: Any) -> Chain:
    """`forged` are fields of the second stage's checkpoint, written and linked as if they were true."""
    claim_folder(folder.run)
    first = folder.save(10, 1)
    second = folder.save(20, 2, parent=first)
    third = folder.commit(None, {"step": 5, "ordinal": 3, "parent": second} | LONG | forged)
    export = folder.commit(None, {"kind": ManifestKind.EXPORT, "step": 5, "ordinal": 3, "parent": third} | LONG)
    return Chain(folder, first, second, third, export)


@pytest.fixture
def folder(s3: s3_server.S3Server) -> Folder:
    return Folder(s3)


@pytest.fixture
def chain(folder: Folder) -> Chain:
    return chain_of(folder)


def test_whole_chain_verifies_from_export_to_base(chain: Chain) -> None:
    assert chain.walk(deep=True) == [5, 5, 20, 10]
    assert chain.walk(chain.export.digest) == [5, 5, 20, 10]


def manifest(bucket: Bucket, folder: Folder, chain: Chain, of: ParentRef) -> bytes:
    return bucket.get(f"{folder.key}/{chain.below(of)}/MANIFEST.json")[0]


FIELDS = ["step", "seed", "configDigest", "codeDigest", "ordinal", "worldSize", "createdAt", "sha256", "size", "uid"]


def test_changed_manifest_of_an_ancestor_is_found_whichever_field(chain: Chain) -> None:
    bucket = chain.folder.run.bucket
    for of in (chain.first, chain.second, chain.third):
        data = manifest(bucket, chain.folder, chain, of)
        for field in FIELDS:
            at = data.index(f'"{field}"'.encode()) + 1
            chain.put(of, "MANIFEST.json", data[:at] + data[at : at + 1].swapcase() + data[at + 1 :])
            with pytest.raises(Damaged, match="as its child says"):
                chain.walk()
        chain.put(of, "MANIFEST.json", data)
    assert chain.walk() == [5, 5, 20, 10]


def test_changed_manifest_at_the_top_is_found_by_the_digest_that_is_known_from_elsewhere(chain: Chain) -> None:
    forged = chain.folder.commit(
        None, {"kind": ManifestKind.EXPORT, "step": 5, "ordinal": 3, "parent": chain.second, "world_size": 9} | LONG
    )
    assert forged.uri == chain.export.uri
    with pytest.raises(Damaged, match="as requested"):
        chain.walk(chain.export.digest)


def test_changed_payload_is_found_by_its_size_and_by_its_checksum_without_reading_it(chain: Chain) -> None:
    for of, step in ((chain.first, 10), (chain.second, 20), (chain.third, 5), (chain.export, 5)):
        true = f"weights {step}".encode()
        for data, told in ((true + b"x", "bytes, not"), (b"y" * len(true), "checksum")):
            chain.put(of, "w.bin", data)
            with pytest.raises(Damaged, match=told):
                chain.walk()
        chain.put(of, "w.bin", true)
    assert chain.walk() == [5, 5, 20, 10]


def test_checkpoint_put_in_the_place_of_another_is_found(folder: Folder) -> None:
    claim_folder(folder.run)
    swapped = folder.commit("short/step-000020.a001", {"step": 10, "ordinal": 1})
    key = swapped.uri.removeprefix(f"s3://{s3_server.BUCKET}/")
    with pytest.raises(Damaged, match=r"is the manifest of short/step-000010\.a001"):
        list(walk_chain(folder.run.bucket, key, swapped.digest))


FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "another config": ({"config_digest": sha256_digest(b"other")}, "config digest"),
    "another seed": ({"seed": 7}, "has seed"),
    "a stage before its parent's": ({"stage": "early", "stage_index": 0}, "calls stage"),
    "an attempt before its parent's": ({"ordinal": 1}, "the later attempt 2"),
    "another trainer within an attempt": (
        {"stage": "short", "stage_index": 0, "step": 25, "ordinal": 2, "code_digest": sha256_digest(b"other")},
        "has code digest",
    ),
    "a step before its parent's": ({"stage": "short", "stage_index": 0, "step": 15}, "is of step 15"),
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_link_is_found_though_all_its_digests_fit(folder: Folder, what: str) -> None:
    fields, told = FORGED[what]
    forged = folder_with(folder, fields)
    with pytest.raises(Damaged, match=told):
        list(walk_chain(folder.run.bucket, forged.uri.removeprefix(f"s3://{s3_server.BUCKET}/"), forged.digest))


def folder_with(folder: Folder, fields: dict[str, Any]) -> ParentRef:
    claim_folder(folder.run)
    second = folder.save(20, 2, parent=folder.save(10, 1))
    if "config_digest" in fields:  # a claim that fits the forged one
        record = RunRecord(run=RUN, config_digest=fields["config_digest"], created_at="2026-01-01T00:00:00Z")
        folder.put("RUN.json", record.to_json())
    return folder.commit(None, {"step": 5, "ordinal": 3, "parent": second} | LONG | fields)


OWNERS: dict[str, tuple[Callable[[Folder], object], str]] = {
    "another run": (lambda f: f.put("RUN.json", record(OTHER, CONFIG)), "is of run 99999999"),
    "another config": (lambda f: f.put("RUN.json", record(RUN, sha256_digest(b"x"))), "has config digest"),
    "nothing readable": (lambda f: f.put("RUN.json", b"{}"), "cannot be read"),
    "nobody": (lambda f: f.client.delete_object(Bucket=s3_server.BUCKET, Key=f"{f.key}/RUN.json"), "is missing"),
}


def record(run: Any, config: Any) -> bytes:
    made: bytes = RunRecord(run=run, config_digest=config, created_at="2026-01-01T00:00:00Z").to_json()
    return made


@pytest.mark.parametrize("owner", OWNERS)
def test_folder_that_was_claimed_by_another_is_found(chain: Chain, owner: str) -> None:
    change, told = OWNERS[owner]
    change(chain.folder)
    with pytest.raises(Damaged, match=told):
        chain.walk()


def test_chain_goes_on_into_the_run_that_it_was_started_from(s3: s3_server.S3Server, chain: Chain) -> None:
    later = Folder(s3)
    later.put("RUN.json", record(OTHER, sha256_digest(b"other")))
    made = later.save(3, 1, run=OTHER, config_digest=sha256_digest(b"other"), seed=5, parent=chain.third)
    key = made.uri.removeprefix(f"s3://{s3_server.BUCKET}/")
    assert [link.manifest.step for link in walk_chain(later.run.bucket, key, made.digest)] == [3, 5, 20, 10]


def test_command_tells_each_link_and_what_is_wrong(chain: Chain) -> None:
    def verify(*options: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"AWS_ACCESS_KEY_ID": s3_server.ACCESS, "AWS_SECRET_ACCESS_KEY": s3_server.SECRET}
        command = [sys.executable, "-m", "deepcoder_operator", "verify", "--endpoint", chain.folder.server.endpoint]
        return subprocess.run(
            [*command, *options, chain.export.uri],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    answer = verify("--deep", "--digest", chain.export.digest)
    assert answer.returncode == 0, answer.stderr
    assert [line.split()[4] for line in answer.stdout.splitlines()] == ["5", "5", "20", "10"]
    assert verify("--digest", chain.third.digest).returncode == 1
    chain.folder.save(10, 1, seed=7)
    answer = verify()
    assert answer.returncode == 1
    assert "as its child says" in answer.stderr


def test_authority_that_cannot_be_read_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_CA_BUNDLE", "nowhere.pem")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["deepcoder-operator", "verify", "s3://bucket/folder"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "AWS_CA_BUNDLE nowhere.pem cannot be read" in capsys.readouterr().err
