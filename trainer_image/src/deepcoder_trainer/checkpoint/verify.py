"""Walks a lineage from any manifest to its root and checks every link.

Each manifest must be the one its child names, by digest, and one that its child can come from (`lineage.broken_link`);
every file must be there with the size and checksum the manifest says, and with `deep` its bytes are read and hashed. A
pruned ancestor has a manifest and nothing else: that is how retention works, and no fault; the manifest one starts from
must be whole. What names no parent must be able to be a run's first: a checkpoint of the first stage that trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.lineage import broken_link, cut_short, misplaced
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, ObjectMissing
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.transfer import PARTIAL

_LONGEST_CHAIN = 100_000


@dataclass(frozen=True)
class Link:
    """One manifest of a chain, checked."""

    uri: str
    """Its folder."""

    digest: str | None
    """Of its bytes; None if there is none to read."""

    manifest: Manifest | None
    """What it says; None if it cannot be read."""

    pruned: bool
    """Whether its payload was removed by retention."""

    problems: tuple[str, ...]
    """What is wrong, for people; empty if nothing is."""


def walk_chain(uri: str, *, deep: bool, endpoint: str | None = None, region: str | None = None) -> Iterator[Link]:
    """The manifest in folder `uri`, its parent, and so on to the root; stops at the first that cannot be read."""
    expected: str | None = None
    child: Manifest | None = None
    for depth in range(_LONGEST_CHAIN):
        store = open_storage(uri.rstrip("/"), endpoint, region)
        try:
            manifest, digest = read_manifest(store, "")
        except (ObjectMissing, CheckpointDamaged) as e:
            yield Link(uri, None, None, False, (str(e),))
            return
        problems = []
        if expected is not None and digest != expected:
            problems.append(f"its child names digest {expected}, it has {digest}")
        if child is not None and (wrong := broken_link(child, manifest)):
            problems.append(f"what comes from it {wrong}")
        if cut := cut_short(manifest):
            problems.append(f"it {cut}")
        present = {o.key for o in store.list("")}
        pruned = depth > 0 and bool(manifest.files) and not any(f.path in present for f in manifest.files)
        if not pruned:
            for entry in manifest.files:
                problems += check_file(store, entry, deep=deep)
        yield Link(uri, digest, manifest, pruned, tuple(problems))
        if manifest.parent is None:
            return
        # What the command has exported lies anywhere, and was made by other code than the attempt that it names.
        elsewhere = manifest.kind is ManifestKind.EXPORT and misplaced(uri, manifest) is not None
        uri, expected, child = manifest.parent.uri, manifest.parent.digest, None if elsewhere else manifest


def check_file(store: ObjectStore, entry: FileEntry, *, deep: bool) -> list[str]:
    """What is wrong with one file; with `deep` its bytes are read."""
    stored = store.head(entry.path)
    if stored is None:
        return [f"{entry.path} is missing"]
    if stored.size != entry.size:
        return [f"{entry.path} has {stored.size} bytes, its manifest says {entry.size}"]
    if stored.checksum and entry.s3_checksum and stored.checksum != entry.s3_checksum:
        return [f"{entry.path} has checksum {stored.checksum}, its manifest says {entry.s3_checksum}"]
    if deep:
        _, sha256 = store.sha256(entry.path)
        if sha256 != entry.sha256:
            return [f"{entry.path} has sha256 {sha256}, its manifest says {entry.sha256}"]
    return []


def unlisted_files(directory: Path, manifest: Manifest) -> list[str]:
    """Files below a local folder that its manifest does not list; nothing loads hidden ones, nor those half brought.

    Whoever loads a folder takes each file of a known name or ending: one that nobody checked may be among them.
    """
    listed = {MANIFEST, *(entry.path for entry in manifest.files)}
    paths = (path.relative_to(directory) for path in sorted(directory.rglob("*")) if not path.is_dir())
    seen = (p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts))
    return [name for name in seen if name.removesuffix(PARTIAL) not in listed]
