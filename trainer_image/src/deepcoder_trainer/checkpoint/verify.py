"""Walks a lineage in any storage from a manifest to its root, and reports every problem of each link.

The rules are those of `deepcoder_contracts.chain`, which the operator's verification follows too. Here they apply to
the trainer's own storage, on disk or in a bucket. The location of a folder does not matter: a folder that was copied to
a disk can be verified there. Storage errors are raised; problems of a link are part of the link.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deepcoder_contracts.chain import CheckedLink, Damaged, Missing, file_problem, walk
from deepcoder_contracts.layout import MANIFEST, is_payload
from deepcoder_contracts.manifest import FileEntry, Manifest
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, ObjectMissing
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.reader import parse_manifest
from deepcoder_trainer.checkpoint.storage import ObjectStore, StoredObject
from deepcoder_trainer.checkpoint.transfer import PARTIAL

Link = CheckedLink


def walk_chain(uri: str, *, deep: bool, endpoint: str | None = None, region: str | None = None) -> Iterator[Link]:
    """Yield the manifest in folder `uri`, its parent, and so on to the root. Stop at one that cannot be read."""
    return walk(uri, lambda folder: _InStore(open_storage(folder, endpoint, region)), deep=deep, parse=_parsed)


def _parsed(data: bytes, folder: str) -> Manifest:
    try:
        return parse_manifest(data, folder)
    except CheckpointDamaged as error:
        raise Damaged(str(error)) from error


def check_file(store: ObjectStore, entry: FileEntry, *, deep: bool) -> list[str]:
    """Return the problems of one file. With `deep`, read its bytes."""
    problem = file_problem(_InStore(store), entry, deep=deep)
    return [] if problem is None else [problem]


class _InStore:
    """The folder of a manifest, which is the root of `store`."""

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
        return any(is_payload(o.key) for o in self._store.list(""))


def unlisted_files(directory: Path, manifest: Manifest) -> list[str]:
    """Return files below a local folder that its manifest does not list, except hidden and partially downloaded ones.

    Loaders take every file with a known name or suffix, so an unlisted file could be loaded without a check.
    """
    listed = {MANIFEST, *(entry.path for entry in manifest.files)}
    paths = (path.relative_to(directory) for path in sorted(directory.rglob("*")) if not path.is_dir())
    seen = (p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts))
    return [name for name in seen if name.removesuffix(PARTIAL) not in listed]
