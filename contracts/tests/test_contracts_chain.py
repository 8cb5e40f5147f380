"""A walk along a chain ends, and never with nothing to say where it did not come to the first manifest."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from deepcoder_contracts import chain
from deepcoder_contracts.base import Digest, sha256_digest
from deepcoder_contracts.chain import CheckedLink, Missing, walk
from deepcoder_contracts.manifest import Manifest, ManifestKind, ParentRef, RunIdentity

RUN = RunIdentity(namespace="ml", name="demo", uid="01234567-89ab-4cde-8f01-23456789abcd")
NOBODYS = sha256_digest(b"")


class Folders:
    """Manifests without files, by their folders' names."""

    def __init__(self) -> None:
        self._stored: dict[str, bytes] = {}

    def put(self, name: str, step: int, parent: str | None, digest: Digest | None = None) -> None:
        """A checkpoint whose parent has the digest that is said, or its own."""
        uri = f"s3://b/{name}"
        named = f"s3://b/{parent}"
        above = ParentRef(uri=named, digest=digest or sha256_digest(self._stored[named])) if parent else None
        self._stored[uri] = Manifest(
            kind=ManifestKind.CHECKPOINT, run=RUN, stage="short", stage_index=0, ordinal=1, step=step, parent=above,
            config_digest=sha256_digest(b"config"), code_digest=sha256_digest(b"code"), seed=0, world_size=1,
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        ).to_json()  # fmt: skip

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
