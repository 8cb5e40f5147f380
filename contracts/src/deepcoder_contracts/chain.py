"""Whether a checkpoint is what its manifest says: size and checksum of every file by HEAD, no payload.

`deep` reads every byte and checks SHA-256. A chain is walked from any manifest to the run's root through parents'
digests, so a change anywhere below is found. The first manifest has nothing above it: only a digest that is known from
elsewhere, the run's status or a child run's `spec.from`, shows that it is the one that was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pydantic import ValidationError

from deepcoder_contracts.base import Digest, sha256_digest
from deepcoder_contracts.layout import MANIFEST, RUN
from deepcoder_contracts.lineage import broken_link, cut_short, misplaced, place_of
from deepcoder_contracts.manifest import Manifest, RunRecord


class Missing(Exception):
    """There is no such object."""


class StoredObject(Protocol):
    """An object as storage tells it."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def checksum(self) -> str | None:
        """ChecksumSHA256 as S3 reports it, where it does."""


class Bucket(Protocol):
    """What is asked of a bucket. Each method but `objects` raises `Missing`, and errors of its own kind."""

    @property
    def name(self) -> str:
        """Its name."""

    def get(self, key: str) -> tuple[bytes, datetime]:
        """Content of a document, and when it was committed."""

    def head(self, key: str) -> StoredObject:
        """Size and checksum."""

    def objects(self, prefix: str) -> Sequence[object]:
        """Everything below a prefix."""

    def sha256(self, key: str) -> str:
        """Hash of an object's bytes."""


class Damaged(Exception):
    """A checkpoint is not what its manifest, or its child, says."""


def read_manifest(data: bytes, where: str) -> Manifest:
    """Parse; raises `Damaged`."""
    try:
        return Manifest.from_json(data)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(p) for p in first["loc"])
        raise Damaged(f"{where}/{MANIFEST} cannot be read: {field}: {first['msg']}") from e


def verify_files(bucket: Bucket, folder: str, manifest: Manifest, *, deep: bool = False) -> None:
    """Check each file that a manifest lists; raises `Damaged` naming the first that differs."""
    for entry in manifest.files:
        where = f"s3://{bucket.name}/{folder}/{entry.path}"
        if ".." in entry.path.split("/"):
            raise Damaged(f"{where} leaves its folder")
        try:
            stored = bucket.head(f"{folder}/{entry.path}")
        except Missing:
            raise Damaged(f"{where} is missing") from None
        if stored.size != entry.size:
            raise Damaged(f"{where} has {stored.size} bytes, not {entry.size}")
        if entry.s3_checksum and stored.checksum and stored.checksum != entry.s3_checksum:
            raise Damaged(f"{where} has checksum {stored.checksum}, not {entry.s3_checksum}")
        if deep and bucket.sha256(f"{folder}/{entry.path}") != entry.sha256:
            raise Damaged(f"{where} has another SHA-256 than its manifest says")


@dataclass(frozen=True)
class Link:
    """One manifest of a chain."""

    uri: str
    digest: Digest
    manifest: Manifest
    pruned: bool
    """Whether its payload was pruned; its manifest stands."""


def walk_chain(bucket: Bucket, folder: str, digest: Digest | None, *, deep: bool = False) -> Iterator[Link]:
    """Each manifest from a folder up to the root, verified; raises `Damaged`, or `Missing` for the first.

    Each has to be in its own place, in a folder that its run has claimed, and able to come from its parent. Files of
    the first manifest must all be there; an ancestor's payload may have been pruned, but then as a whole.
    """
    child: Manifest | None = None
    seen: list[str] = []
    while True:
        uri = f"s3://{bucket.name}/{folder}"
        try:
            data, _ = bucket.get(f"{folder}/{MANIFEST}")
        except Missing:
            raise Damaged(f"{uri}/{MANIFEST} is missing") from None
        found = sha256_digest(data)
        if digest is not None and found != digest:
            who = "as its child says" if child else "as was asked for"
            raise Damaged(f"{uri}/{MANIFEST} has digest {found}, not {digest} {who}")
        manifest = read_manifest(data, uri)
        if problem := misplaced(folder, manifest):
            raise Damaged(f"{uri}/{MANIFEST} {problem}")
        if problem := cut_short(manifest):
            raise Damaged(f"{uri}/{MANIFEST} {problem}")
        if child is not None and (problem := broken_link(child, manifest)):
            raise Damaged(f"what comes from {uri} {problem}")
        if child is None or child.run.uid != manifest.run.uid:
            if manifest.run.uid in seen:
                raise Damaged(f"{uri} is of run {manifest.run.uid}, which the chain has left before")
            seen.append(manifest.run.uid)
            _check_owner(bucket, folder, manifest)
        pruned = child is not None and not bucket.objects(f"{folder}/")[1:]
        if not pruned:
            verify_files(bucket, folder, manifest, deep=deep)
        yield Link(uri, found, manifest, pruned)
        if manifest.parent is None:
            return
        other, _, folder = manifest.parent.uri.removeprefix("s3://").partition("/")
        if other != bucket.name:
            raise Damaged(f"{uri} has its parent in another bucket, {other}: verify that one by itself")
        folder, digest, child = folder.rstrip("/"), manifest.parent.digest, manifest


def _check_owner(bucket: Bucket, folder: str, manifest: Manifest) -> None:
    """Whether the run's folder was claimed by the run that the manifest names, with its config."""
    root = folder.removesuffix(place_of(manifest)).rstrip("/")
    where = f"s3://{bucket.name}/{root}/{RUN}"
    try:
        record = RunRecord.from_json(bucket.get(f"{root}/{RUN}")[0])
    except Missing:
        raise Damaged(f"{where} is missing: nothing says whose folder this is") from None
    except ValidationError as e:
        raise Damaged(f"{where} cannot be read: {e.errors(include_url=False, include_input=False)[0]['msg']}") from e
    if record.run.uid != manifest.run.uid:
        raise Damaged(f"{where} is of run {record.run.uid}, the manifest in {folder} of {manifest.run.uid}")
    if record.config_digest != manifest.config_digest:
        raise Damaged(f"{where} has config digest {record.config_digest}, the manifest in {folder} another")
