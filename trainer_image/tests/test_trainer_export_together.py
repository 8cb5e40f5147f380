"""Two exports to one place in S3: one of them is published, whole, and the other says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import export_world
import pytest
from lost_answers import lose_the_first_answer

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.manifest import ManifestKind, ParentRef
from deepcoder_trainer.checkpoint import storage_s3, transfer
from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.verify import Link, walk_chain
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.export.publish import check_free, publish
from deepcoder_trainer.export.source import Place

pytestmark = pytest.mark.s3
FILES = ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def staged(folder: Path, words: bytes) -> Path:
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(words + name.encode())
    return folder


@pytest.fixture
def place() -> Place:
    manifest = export_world.manifest(kind=ManifestKind.EXPORT)
    ref = ParentRef(uri="s3://models/run", digest=sha256_digest(manifest.to_json()))
    return Place(ref, manifest, (Link(ref.uri, ref.digest, manifest, False, ()),))


@pytest.mark.parametrize("overlap", ["meanwhile", "after"])
def test_of_two_exports_that_found_a_place_free_one_is_published_and_the_other_changes_nothing(
    s3: Any, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch, overlap: str
) -> None:
    output = f"s3://{s3.bucket}/{uuid4()}/out"
    ours, theirs = staged(tmp_path / "a", b"ours"), staged(tmp_path / "b", b"theirs")
    check_free(output, s3.endpoint, None)
    refused: list[BadConfig] = []

    def other() -> None:
        with pytest.raises(BadConfig, match=r"another export|written meanwhile") as error:
            publish(theirs, output, place, {}, s3.endpoint, None)
        refused.append(error.value)

    put = storage_s3.S3Store.put_file

    def put_file(store: Any, key: str, path: Path) -> Any:
        """Before our last file the other one, which has found the place free as well, begins."""
        if overlap == "meanwhile" and path == ours / FILES[-1] and not refused:
            other()
        return put(store, key, path)

    monkeypatch.setattr(storage_s3.S3Store, "put_file", put_file)
    ref = publish(ours, output, place, {}, s3.endpoint, None)
    if overlap == "after":
        other()
    assert refused[0].field == "--output"
    store = open_storage(output, s3.endpoint)
    assert {o.key for o in store.list("")} == {"MANIFEST.json", *FILES}
    assert store.get_bytes(FILES[0]) == b"oursconfig.json"
    link = next(walk_chain(ref.uri, deep=True, endpoint=s3.endpoint))
    assert (link.digest, link.problems) == (ref.digest, ())


def test_an_export_that_cannot_see_whether_another_was_first_takes_none_of_it_away(
    s3: Any, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = f"s3://{s3.bucket}/{uuid4()}/out"
    publish(staged(tmp_path / "a", b"first"), output, place, {}, s3.endpoint, None)
    with monkeypatch.context() as away:
        listing = storage_s3.S3Store.list
        answers = iter([StorageUnavailable("the line is dead")])

        def list_(store: Any, prefix: str) -> Any:
            for answer in answers:
                raise answer
            return listing(store, prefix)

        away.setattr(storage_s3.S3Store, "list", list_)
        with pytest.raises(StorageUnavailable):
            publish(staged(tmp_path / "b", b"second"), output, place, {}, s3.endpoint, None)
    assert {o.key for o in open_storage(output, s3.endpoint).list("")} == {"MANIFEST.json", *FILES}


def test_an_export_that_cannot_be_published_whole_leaves_the_place_free(
    s3: Any, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = f"s3://{s3.bucket}/{uuid4()}/out"
    monkeypatch.setattr(transfer, "_BACKOFF_SECONDS", 0)
    with monkeypatch.context() as away:
        put = storage_s3.S3Store.put_bytes

        def put_bytes(store: Any, key: str, data: bytes, **how: Any) -> Any:
            if key == "MANIFEST.json":
                raise StorageUnavailable("the line is dead")
            return put(store, key, data, **how)

        away.setattr(storage_s3.S3Store, "put_bytes", put_bytes)
        with pytest.raises(StorageUnavailable):
            publish(staged(tmp_path / "a", b"first"), output, place, {}, s3.endpoint, None)
    check_free(output, s3.endpoint, None)
    publish(staged(tmp_path / "b", b"second"), output, place, {}, s3.endpoint, None)
    assert open_storage(output, s3.endpoint).get_bytes(FILES[0]) == b"secondconfig.json"


def test_storage_that_is_away_for_a_moment_when_the_manifest_is_put_takes_no_export_away(
    s3: Any, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = f"s3://{s3.bucket}/{uuid4()}/out"
    keys = lose_the_first_answer(monkeypatch, storage_s3.S3Store)
    publish(staged(tmp_path / "a", b"ours"), output, place, {}, s3.endpoint, None)
    assert len(keys) == 2
    assert {o.key for o in open_storage(output, s3.endpoint).list("")} == {"MANIFEST.json", *FILES}


def test_a_whole_bucket_is_no_place_for_an_export(s3: Any) -> None:
    with pytest.raises(BadConfig, match="name a folder in it"):
        check_free(f"s3://{s3.bucket}", s3.endpoint, None)
