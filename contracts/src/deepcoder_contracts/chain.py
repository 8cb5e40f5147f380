"""Verifies that a checkpoint matches its manifest, and that the manifest descends from the parent that it names.

Files are checked by size and checksum as storage reports them, without reading the payload. `deep` reads every byte and
checks SHA-256. A chain is walked from any manifest to its root through the parents' digests, so a change anywhere below
is found. Nothing vouches for the first manifest itself: only a digest known from elsewhere, from the run's status or a
child run's `spec.from`, shows that it is the one that was written.

`walk` accepts folders anywhere and reports every problem of each. `walk_chain` walks a run's folders in its bucket,
where it can check more, and raises the first problem. Errors of the storage itself pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pydantic import ValidationError

from deepcoder_contracts.base import Digest, first_error, sha256_digest
from deepcoder_contracts.json_flood import flood
from deepcoder_contracts.layout import MANIFEST, RUN, is_payload
from deepcoder_contracts.lineage import broken_link, cut_short, misplaced, place_of
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind, RunRecord

LONGEST_CHAIN = 100_000
"""Largest number of links in a chain. It bounds a walk through malicious data."""

MOST_TEXTS = 100_000
"""Largest number of JSON strings in a manifest, names of fields included. Ten thousand files have 70 thousand."""

MOST_STRUCTURE_BYTES = 384 * 1024
"""Largest number of bytes of a manifest outside its strings. Ten thousand files have 200 kB."""


class Missing(Exception):
    """The object does not exist."""


class Damaged(Exception):
    """A checkpoint does not match its manifest or its child."""


class StoredObject(Protocol):
    """An object as storage reports it."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    @property
    def checksum(self) -> str | None:
        """ChecksumSHA256, if S3 reports one."""


class Listed(Protocol):
    """An object in a listing."""

    @property
    def key(self) -> str:
        """Key in the bucket."""


class Bucket(Protocol):
    """The bucket operations that a walk needs. Every method but `objects` raises `Missing`, and errors of its own."""

    @property
    def name(self) -> str:
        """Name of the bucket."""

    def get(self, key: str) -> tuple[bytes, datetime]:
        """Return the content of a document, and when it was committed."""

    def head(self, key: str) -> StoredObject:
        """Return size and checksum of an object."""

    def objects(self, prefix: str) -> Sequence[Listed]:
        """Return all objects below a prefix."""

    def sha256(self, key: str) -> str:
        """Return the SHA-256 of an object's bytes."""


class Folder(Protocol):
    """The operations on a manifest's folder that a walk needs. All but `holds_payload` raise `Missing`."""

    def manifest(self) -> bytes:
        """Return the manifest's stored bytes."""

    def head(self, path: str) -> StoredObject:
        """Return size and checksum of a file."""

    def sha256(self, path: str) -> str:
        """Return the SHA-256 of a file's bytes."""

    def holds_payload(self) -> bool:
        """Whether the folder contains more than the manifest and pins: a run may try to start from what was pruned."""


@dataclass(frozen=True)
class Link:
    """A verified manifest of a chain."""

    uri: str
    digest: Digest
    manifest: Manifest
    pruned: bool
    """Whether retention removed the payload. The manifest remains."""


@dataclass(frozen=True)
class CheckedLink:
    """One manifest of a chain, with its problems."""

    uri: str
    """Folder of the manifest."""

    digest: Digest | None
    """Digest of the manifest's bytes. None if there are none."""

    manifest: Manifest | None
    """Parsed manifest. None if it cannot be read."""

    pruned: bool
    """Whether retention removed the payload."""

    problems: tuple[str, ...]
    """Problems for people, each worded to follow the folder's name. Empty if nothing is wrong."""


def read_manifest(data: bytes, where: str) -> Manifest:
    """Parse a manifest. Raises `Damaged`."""
    if flood(data, texts=MOST_TEXTS, structure_bytes=MOST_STRUCTURE_BYTES):
        raise Damaged(f"{where}/{MANIFEST} cannot be read: it has more values than a manifest of ten thousand files")
    try:
        return Manifest.from_json(data)
    except ValidationError as e:
        raise Damaged(f"{where}/{MANIFEST} cannot be read: {first_error(e)}") from e


Parse = Callable[[bytes, str], Manifest]
"""Parses a manifest's bytes, given its folder's name. Raises `Damaged`."""
Rule = Callable[[str, Manifest, Manifest | None], Iterable[str]]
"""Returns further problems of the manifest in a folder, given the child that names it as its parent."""
Known = Callable[[str, Digest], Link | None]
"""Returns a link that was verified before, by folder and digest: neither its manifest nor its files are read again."""


def walk(
    uri: str,
    open_folder: Callable[[str], Folder],
    *,
    digest: Digest | None = None,
    deep: bool = False,
    parse: Parse = read_manifest,
    rule: Rule = lambda _uri, _manifest, _child: (),
    known: Known = lambda _uri, _digest: None,
) -> Iterator[CheckedLink]:
    """Yield the manifest in folder `uri`, its parent, and so on to the root. Stop at the first that cannot be read.

    If the walk stops before the root, the last link says so, also if the chain loops or exceeds `LONGEST_CHAIN`.
    `digest` is the expected digest of the first manifest. All files of the first manifest must exist. An ancestor's
    payload may have been pruned, but only completely. `open_folder` may raise `Damaged` for a folder that it cannot
    reach.
    """
    child: Manifest | None = None
    said_by = "as requested"
    walked: set[Digest] = set()
    for depth in range(LONGEST_CHAIN):
        uri = uri.rstrip("/")
        found, problems = None, []
        seen = known(uri, digest) if digest is not None else None
        if seen is not None and seen.pruned and depth == 0:  # as an ancestor it might be, as the first it may not
            seen = None
        try:
            folder = open_folder(uri)
            data = folder.manifest() if seen is None else b""
            found = sha256_digest(data) if seen is None else seen.digest
            if digest not in (None, found):
                problems.append(f"it has digest {found}, not {digest} {said_by}")
            if found in walked:
                raise Damaged("the chain leads back to it: it has no end")
            walked.add(found)
            manifest = parse(data, uri) if seen is None else seen.manifest
        except (Missing, Damaged) as error:
            problems.append(f"{MANIFEST} is missing" if isinstance(error, Missing) else str(error))
            yield CheckedLink(uri, found, None, False, tuple(problems))
            return
        problems += rule(uri, manifest, child)
        if problem := cut_short(manifest):
            problems.append(f"it {problem}")
        if child is not None and (problem := broken_link(child, manifest)):
            problems.append(f"what comes from it {problem}")
        payload_gone = depth > 0 and seen is None and bool(manifest.files) and not folder.holds_payload()
        pruned = payload_gone if seen is None else seen.pruned
        if not pruned and seen is None:
            problems += [problem for file in manifest.files if (problem := file_problem(folder, file, deep=deep))]
        yield CheckedLink(uri, found, manifest, pruned, tuple(problems))
        if manifest.parent is None:
            return
        # A command may export to any folder, and with code other than that of the attempt that the export names.
        elsewhere = manifest.kind is ManifestKind.EXPORT and misplaced(uri, manifest) is not None
        child, said_by = None if elsewhere else manifest, "as its child says"
        uri, digest = manifest.parent.uri, manifest.parent.digest
    problem = f"the chain has more than {LONGEST_CHAIN} links: it was not checked from here on"
    yield CheckedLink(uri, None, None, False, (problem,))


def file_problem(folder: Folder, entry: FileEntry, *, deep: bool = False) -> str | None:
    """Return what is wrong with a file that a manifest lists, or None."""
    if ".." in entry.path.split("/"):
        return f"{entry.path} leaves its folder"
    try:
        stored = folder.head(entry.path)
        if stored.size != entry.size:
            return f"{entry.path} has {stored.size} bytes, not {entry.size}"
        if entry.s3_checksum and stored.checksum and stored.checksum != entry.s3_checksum:
            return f"{entry.path} has checksum {stored.checksum}, not {entry.s3_checksum}"
        if deep and (found := folder.sha256(entry.path)) != entry.sha256:
            return f"{entry.path} has sha256 {found}, not {entry.sha256}"
    except Missing:
        return f"{entry.path} is missing"
    return None


def verify_files(
    bucket: Bucket,
    folder: str,
    manifest: Manifest,
    *,
    deep: bool = False,
    after: int = 0,
    note: Callable[[int], None] = lambda verified: None,
) -> None:
    """Check each file that a manifest lists. Raises `Damaged` with the first that differs.

    After each file, `note` gets the number of files that are as listed. `after` is such a number, from where to go on.
    """
    found = _InBucket(bucket, folder)
    for number, entry in enumerate(manifest.files[after:], after + 1):
        if problem := file_problem(found, entry, deep=deep):
            raise Damaged(f"{found.uri}/{problem}")
        note(number)


def walk_chain(
    bucket: Bucket, folder: str, digest: Digest | None, *, deep: bool = False, known: Known = lambda _uri, _digest: None
) -> Iterator[Link]:
    """Yield each verified manifest from a run's folder up to the root. Raises `Damaged` at the first problem.

    In addition to the checks of `walk`, each manifest must be in its own place, in a folder that its run has claimed,
    and in this bucket.
    """
    rule = _Claims(bucket).problems
    for link in walk(
        f"s3://{bucket.name}/{folder}", lambda uri: _opened(bucket, uri), digest=digest, deep=deep, rule=rule,
        known=known,
    ):  # fmt: skip
        if link.problems:
            raise Damaged(f"{link.uri}: {link.problems[0]}")
        assert link.manifest is not None, "a link without problems has a manifest"
        assert link.digest is not None, "and a digest"
        yield Link(link.uri, link.digest, link.manifest, link.pruned)


class _InBucket:
    """A folder in a bucket."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key
        self.uri = f"s3://{bucket.name}/{key}"

    def manifest(self) -> bytes:
        return self._bucket.get(f"{self._key}/{MANIFEST}")[0]

    def head(self, path: str) -> StoredObject:
        return self._bucket.head(f"{self._key}/{path}")

    def sha256(self, path: str) -> str:
        return self._bucket.sha256(f"{self._key}/{path}")

    def holds_payload(self) -> bool:
        below = f"{self._key}/"
        return any(is_payload(o.key.removeprefix(below)) for o in self._bucket.objects(below))


def _opened(bucket: Bucket, uri: str) -> _InBucket:
    name, _, key = uri.removeprefix("s3://").partition("/")
    if name != bucket.name:
        raise Damaged(f"this parent is in another bucket, {name}: verify that one by itself")
    return _InBucket(bucket, key)


class _Claims:
    """Checks that each manifest lies in a folder that its run has claimed."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._left: list[str] = []

    def problems(self, uri: str, manifest: Manifest, child: Manifest | None) -> Iterator[str]:
        """Yield the manifest's problems, as a `Rule` does."""
        folder = uri.removeprefix(f"s3://{self._bucket.name}/")
        if problem := misplaced(folder, manifest):
            yield f"it {problem}"
        elif child is None or child.run.uid != manifest.run.uid:
            if manifest.run.uid in self._left:
                yield f"it is of run {manifest.run.uid}, to which the chain returns after another run"
            self._left.append(manifest.run.uid)
            yield from self._owner(folder.removesuffix(place_of(manifest)).rstrip("/"), manifest)

    def _owner(self, root: str, manifest: Manifest) -> Iterator[str]:
        """Check that the manifest's run claimed the folder, with the manifest's config."""
        where = f"s3://{self._bucket.name}/{root}/{RUN}"
        try:
            record = RunRecord.from_json(self._bucket.get(f"{root}/{RUN}")[0])
        except Missing:
            yield f"{where} is missing: the owner of this folder is unknown"
            return
        except ValidationError as e:
            yield f"{where} cannot be read: {e.errors(include_url=False, include_input=False)[0]['msg']}"
            return
        if record.run.uid != manifest.run.uid:
            yield f"{where} is of run {record.run.uid}, its manifest of {manifest.run.uid}"
        elif record.config_digest != manifest.config_digest:
            yield f"{where} has config digest {record.config_digest}, its manifest another"
