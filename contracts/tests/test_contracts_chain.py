"""A walk along a chain ends, and never with nothing to say where it did not come to the first manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

import pytest
from pydantic import ValidationError

from deepcoder_contracts import chain
from deepcoder_contracts.base import Digest, sha256_digest
from deepcoder_contracts.chain import CheckedLink, Damaged, Missing, read_manifest, walk, walk_chain
from deepcoder_contracts.layout import checkpoint_dir
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind, ParentRef, RunIdentity, RunRecord

RUN = RunIdentity(namespace="ml", name="demo", uid="01234567-89ab-4cde-8f01-23456789abcd")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOBODYS = sha256_digest(b"")


def _manifest(step: int, parent: ParentRef | None, files: list[FileEntry]) -> bytes:
    return Manifest(
        kind=ManifestKind.CHECKPOINT, run=RUN, stage="short", stage_index=0, ordinal=1, step=step, total_steps=step,
        parent=parent, config_digest=sha256_digest(b"config"), code_digest=sha256_digest(b"code"), seed=0, world_size=1,
        created_at=NOON, files=files,
    ).to_json()  # fmt: skip


class Folders:
    """Manifests without files, by their folders' names."""

    def __init__(self) -> None:
        self._stored: dict[str, bytes] = {}

    def put(self, name: str, step: int, parent: str | None, digest: Digest | None = None) -> None:
        """A checkpoint whose parent has the digest that is said, or its own."""
        uri = f"s3://b/{name}"
        named = f"s3://b/{parent}"
        above = ParentRef(uri=named, digest=digest or sha256_digest(self._stored[named])) if parent else None
        self._stored[uri] = _manifest(step, above, [])

    def walk(self, name: str) -> list[CheckedLink]:
        return list(walk(f"s3://b/{name}", lambda uri: _Folder(self._stored.get(uri))))


class _Folder:
    def __init__(self, data: bytes | None) -> None:
        self._data = data

    def manifest(self) -> bytes:
        if self._data is None:
            raise Missing
        return self._data

    def head(self, path: str) -> chain.StoredObject:
        raise Missing

    def sha256(self, path: str) -> str:
        raise Missing

    def holds_payload(self) -> bool:
        return True


@pytest.fixture
def folders() -> Folders:
    return Folders()


def test_chain_that_leads_back_to_itself_is_walked_once(folders: Folders) -> None:
    """Its digests cannot fit, but whoever wrote it may not care: each link may be gigabytes to read."""
    folders.put("one", 1, "two", NOBODYS)
    folders.put("two", 2, "one")
    links = folders.walk("two")
    assert [link.uri for link in links] == ["s3://b/two", "s3://b/one", "s3://b/two"]
    assert links[0].problems == ()
    assert "leads back" in links[-1].problems[-1]


def test_chain_of_which_no_end_was_seen_does_not_pass_for_whole(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "LONGEST_CHAIN", 3)
    folders.put("0", 1, None)
    for step in range(1, 4):
        folders.put(str(step), step + 1, str(step - 1))
    assert [link.problems for link in folders.walk("2")] == [(), (), ()]
    *right, last = folders.walk("3")
    assert [link.problems for link in right] == [(), (), ()]
    assert last.uri == "s3://b/0"
    assert "more than 3" in last.problems[0]


@dataclass(frozen=True)
class _Object:
    key: str
    size: int
    checksum: str | None = None


class _Bucket:
    """Objects by key."""

    name = "b"

    def __init__(self, stored: dict[str, bytes]) -> None:
        self.stored = stored

    def get(self, key: str) -> tuple[bytes, datetime]:
        if key not in self.stored:
            raise Missing
        return self.stored[key], NOON

    def head(self, key: str) -> _Object:
        if key not in self.stored:
            raise Missing
        return _Object(key, len(self.stored[key]))

    def objects(self, prefix: str) -> Sequence[_Object]:
        return [self.head(key) for key in self.stored if key.startswith(prefix)]

    def sha256(self, key: str) -> NoReturn:
        raise NotImplementedError


@pytest.mark.parametrize("left", [["pin-99999999-2222-3333-4444-555555555555.json"], []])
def test_what_another_run_puts_beside_a_pruned_payload_is_none(left: list[str]) -> None:
    """Each attempt asks for the checkpoint to be kept before it sees that it is gone."""
    older, newer = (f"ns/demo-01234567/{checkpoint_dir('short', step, 1)}" for step in (1, 2))
    record = RunRecord(run=RUN, config_digest=sha256_digest(b"config"), created_at=NOON)
    bucket = _Bucket({"ns/demo-01234567/RUN.json": record.to_json(), f"{newer}/state.json": b"{}"})
    file = FileEntry(path="state.json", size=2, sha256="0" * 64)
    bucket.stored[f"{older}/MANIFEST.json"] = _manifest(1, None, [file])
    parent = ParentRef(uri=f"s3://b/{older}", digest=sha256_digest(bucket.stored[f"{older}/MANIFEST.json"]))
    bucket.stored[f"{newer}/MANIFEST.json"] = _manifest(2, parent, [file])
    bucket.stored |= {f"{older}/{name}": b"{}" for name in left}
    assert [link.pruned for link in walk_chain(bucket, newer, None)] == [False, True]
    bucket.stored[f"{older}/pipeline.safetensors"] = b"a part of it"
    with pytest.raises(Damaged, match=r"state\.json is missing"):
        list(walk_chain(bucket, newer, None))


def test_link_that_is_known_is_not_read_again_unless_it_must_have_what_was_pruned() -> None:
    older, newer = (f"ns/demo-01234567/{checkpoint_dir('short', step, 1)}" for step in (1, 2))
    record = RunRecord(run=RUN, config_digest=sha256_digest(b"config"), created_at=NOON)
    bucket = _Bucket({"ns/demo-01234567/RUN.json": record.to_json()})
    bucket.stored[f"{older}/MANIFEST.json"] = _manifest(1, None, [FileEntry(path="s.json", size=2, sha256="0" * 64)])
    digest = sha256_digest(bucket.stored[f"{older}/MANIFEST.json"])
    bucket.stored[f"{newer}/MANIFEST.json"] = _manifest(2, ParentRef(uri=f"s3://b/{older}", digest=digest), [])
    links = {link.digest: link for link in walk_chain(bucket, newer, None)}
    assert links[digest].pruned
    del bucket.stored[f"{older}/MANIFEST.json"]
    again = list(walk_chain(bucket, newer, None, known=lambda _, digest: links.get(digest)))
    assert again == list(links.values())
    with pytest.raises(Damaged, match=r"MANIFEST\.json is missing"):
        list(walk_chain(bucket, older, digest, known=lambda _, digest: links.get(digest)))


def test_manifest_of_ten_thousand_files_is_no_flood() -> None:
    whole = {"size": 1 << 40, "sha256": "0" * 64, "s3_checksum": f"{'x' * 44}-1024"}
    files = [FileEntry(path=f"learner/model-{n:05d}-of-10000.safetensors", **whole) for n in range(10_000)]
    assert len(read_manifest(_manifest(1, None, files), "x").files) == 10_000


FLOODS = {
    "lists": b'{"x":[' + b"[0]," * 100_000 + b"[0]]}",
    "empty files": b'{"files":[' + b"{}," * 150_000 + b"{}]}",
    "texts": b'{"x":[' + b'"",' * 100_000 + b'""]}',
}


@pytest.mark.parametrize("of", FLOODS)
def test_manifest_that_is_a_flood_of_values_is_not_parsed(of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few megabytes of them took more than the operator's memory, and half a minute of its event loop."""
    parsed: list[bytes] = []
    monkeypatch.setattr(Manifest, "from_json", parsed.append)
    with pytest.raises(Damaged, match=r"^x/MANIFEST.json cannot be read: it has more values than a manifest of ten"):
        read_manifest(FLOODS[of], "x")
    assert parsed == []


def test_manifest_with_countless_errors_has_them_counted_and_not_listed() -> None:
    metrics = b",".join(b'"%d":""' % n for n in range(2000))
    with pytest.raises(Damaged, match=r"^x/MANIFEST.json cannot be read: it has 20\d\d errors$"):
        read_manifest(b'{"metrics":{' + metrics + b"}}", "x")
    with pytest.raises(ValidationError) as refused:
        Manifest.from_json(b'{"files":[' + b"{}," * 2000 + b"{}]}")
    assert refused.value.error_count() < 20
