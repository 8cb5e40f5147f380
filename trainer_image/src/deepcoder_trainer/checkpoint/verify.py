"""Walks a lineage in any storage from a manifest to its root, and reports every problem of each link.

The rules are those of `deepcoder_contracts.chain`, which the operator's verification follows too. Here they apply to
the trainer's own storage, on disk or in a bucket. The location of a folder does not matter: a folder that was copied to
a disk can be verified there. Storage errors are raised; problems of a link are part of the link.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deepcoder_contracts.chain import CheckedLink, Damaged, Missing, file_problem, walk
from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.manifest import FileEntry, Manifest
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, ObjectMissing
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.reader import parse_manifest
from deepcoder_trainer.checkpoint.storage import ObjectStore, StoredObject
from deepcoder_trainer.checkpoint.transfer import PARTIAL

Link = CheckedLink


def walk_chain(uri: str, *, deep: bool, endpoint: str | None = None, region: str | None = None) -> Iterator[Link]:
    """The manifest in folder `uri`, its parent, and so on to the root; ends at the first that cannot be read."""
    return walk(uri, lambda folder: _InStore(open_storage(folder, endpoint, region)), deep=deep, parse=_parsed)


def _parsed(data: bytes, folder: str) -> Manifest:
    try:
        return parse_manifest(data, folder)
    except CheckpointDamaged as error:
        raise Damaged(str(error)) from error


def check_file(store: ObjectStore, entry: FileEntry, *, deep: bool) -> list[str]:
    """What is wrong with one file; with `deep` its bytes are read."""
    problem = file_problem(_InStore(store), entry, deep=deep)
    return [] if problem is None else [problem]


class _InStore:
    """A manifest's folder: the root of a store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def manifest(self) -> bytes:
        try:
            return self._store.get_bytes(MANIFEST)
        except ObjectMissing as error:
            raise Missing from error

    def head(self, path: str) -> StoredObject:
        if (stored := self._store.head(path)) is None:
            raise Missing
        return stored

    def sha256(self, path: str) -> str:
        return self._store.sha256(path)[1]

    def holds_payload(self) -> bool:
        return len(self._store.list("")) > 1


def unlisted_files(directory: Path, manifest: Manifest) -> list[str]:
    """Files below a local folder that its manifest does not list; nothing loads hidden ones, nor those half brought.

    Whoever loads a folder takes each file of a known name or ending: one that nobody checked may be among them.
    """
    listed = {MANIFEST, *(entry.path for entry in manifest.files)}
    paths = (path.relative_to(directory) for path in sorted(directory.rglob("*")) if not path.is_dir())
    seen = (p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts))
    return [name for name in seen if name.removesuffix(PARTIAL) not in listed]
