"""Whether a checkpoint is what its manifest says, and comes from what its manifest names.

Files are held to size and checksum as storage tells them, no payload read; `deep` reads every byte and checks SHA-256.
A chain is walked from any manifest to its root through parents' digests, so a change anywhere below is found. The first
manifest has nothing above it: only a digest that is known from elsewhere, the run's status or a child run's
`spec.from`, shows that it is the one that was written.

`walk` walks folders wherever they lie and tells all that is wrong with each. `walk_chain` walks a run's in its bucket,
where more can be asked of each, and raises the first fault. Errors of the storage itself pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pydantic import ValidationError

from deepcoder_contracts.base import Digest, sha256_digest
from deepcoder_contracts.layout import MANIFEST, RUN
from deepcoder_contracts.lineage import broken_link, cut_short, misplaced, place_of
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind, RunRecord

LONGEST_CHAIN = 100_000
"""Links of a chain: a walk has an end, whatever it is led through."""


class Missing(Exception):
    """There is no such object."""


class Damaged(Exception):
    """A checkpoint is not what its manifest, or its child, says."""


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


class Folder(Protocol):
    """What is asked of the folder that a manifest lies in. All but `holds_payload` raise `Missing`."""

    def manifest(self) -> bytes:
        """The manifest as it is stored."""

    def head(self, path: str) -> StoredObject:
        """Size and checksum of a file."""

    def sha256(self, path: str) -> str:
        """Hash of a file's bytes."""

    def holds_payload(self) -> bool:
        """Whether there is more in it than the manifest."""


@dataclass(frozen=True)
class Link:
    """One manifest of a chain that holds."""

    uri: str
    digest: Digest
    manifest: Manifest
    pruned: bool
    """Whether its payload was pruned; its manifest stands."""


@dataclass(frozen=True)
class CheckedLink:
    """One manifest of a chain, and what is wrong with it."""

    uri: str
    """Its folder."""

    digest: Digest | None
    """Of its bytes; None if there are none."""

    manifest: Manifest | None
    """What it says; None if it cannot be read."""

    pruned: bool
    """Whether its payload was removed by retention."""

    problems: tuple[str, ...]
    """For people, each to be read after its folder's name; empty if nothing is wrong."""


def read_manifest(data: bytes, where: str) -> Manifest:
    """Parse; raises `Damaged`."""
    try:
        return Manifest.from_json(data)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(p) for p in first["loc"])
        raise Damaged(f"{where}/{MANIFEST} cannot be read: {field}: {first['msg']}") from e


Parse = Callable[[bytes, str], Manifest]
"""A manifest's bytes, and its folder's name, to what it says; raises `Damaged`."""
Rule = Callable[[str, Manifest, Manifest | None], Iterable[str]]
"""What else is wrong with the manifest in a folder, given the one that names it as its parent."""


def walk(
    uri: str,
    open_folder: Callable[[str], Folder],
    *,
    digest: Digest | None = None,
    deep: bool = False,
    parse: Parse = read_manifest,
    rule: Rule = lambda _uri, _manifest, _child: (),
) -> Iterator[CheckedLink]:
    """The manifest in folder `uri`, its parent, and so on to the root; ends at the first that cannot be read.

    Where it ends before the root the last link says so: a chain that leads back to itself, or on and on, is not whole.
    `digest` is what the first manifest's must be, and its files must all be there; an ancestor's payload may have been
    pruned, but then as a whole. `open_folder` may raise `Damaged` for a folder that is out of its reach.
    """
    child: Manifest | None = None
    said_by = "as was asked for"
    walked: set[Digest] = set()
    for depth in range(LONGEST_CHAIN):
        uri = uri.rstrip("/")
        found, problems = None, []
        try:
            folder = open_folder(uri)
            data = folder.manifest()
            found = sha256_digest(data)
            if digest not in (None, found):
                problems.append(f"it has digest {found}, not {digest} {said_by}")
            if found in walked:
                raise Damaged("the chain leads back to it: it has no end")
            walked.add(found)
            manifest = parse(data, uri)
        except (Missing, Damaged) as error:
            problems.append(f"{MANIFEST} is missing" if isinstance(error, Missing) else str(error))
            yield CheckedLink(uri, found, None, False, tuple(problems))
            return
        problems += rule(uri, manifest, child)
        if problem := cut_short(manifest):
            problems.append(f"it {problem}")
        if child is not None and (problem := broken_link(child, manifest)):
            problems.append(f"what comes from it {problem}")
        pruned = depth > 0 and bool(manifest.files) and not folder.holds_payload()
        if not pruned:
            problems += [problem for file in manifest.files if (problem := file_problem(folder, file, deep=deep))]
        yield CheckedLink(uri, found, manifest, pruned, tuple(problems))
        if manifest.parent is None:
            return
        # What a command has exported lies anywhere, and was made by other code than the attempt that it names.
        elsewhere = manifest.kind is ManifestKind.EXPORT and misplaced(uri, manifest) is not None
        child, said_by = None if elsewhere else manifest, "as its child says"
        uri, digest = manifest.parent.uri, manifest.parent.digest
    problem = f"the chain has more than {LONGEST_CHAIN} links: none from here on was looked at"
    yield CheckedLink(uri, None, None, False, (problem,))


def file_problem(folder: Folder, entry: FileEntry, *, deep: bool = False) -> str | None:
    """What is wrong with a file that a manifest lists; None if nothing is."""
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


def verify_files(bucket: Bucket, folder: str, manifest: Manifest, *, deep: bool = False) -> None:
    """Check each file that a manifest lists; raises `Damaged` naming the first that differs."""
    found = _InBucket(bucket, folder)
    for entry in manifest.files:
        if problem := file_problem(found, entry, deep=deep):
            raise Damaged(f"{found.uri}/{problem}")


def walk_chain(bucket: Bucket, folder: str, digest: Digest | None, *, deep: bool = False) -> Iterator[Link]:
    """Each manifest from a run's folder up to the root, verified; raises `Damaged` at the first that is not right.

    Besides what is asked of any chain, each has to be in its own place, in a folder that its run has claimed, and in
    this bucket.
    """
    rule = _Claims(bucket).problems
    for link in walk(
        f"s3://{bucket.name}/{folder}", lambda uri: _opened(bucket, uri), digest=digest, deep=deep, rule=rule
    ):
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
        return len(self._bucket.objects(f"{self._key}/")) > 1


def _opened(bucket: Bucket, uri: str) -> _InBucket:
    name, _, key = uri.removeprefix("s3://").partition("/")
    if name != bucket.name:
        raise Damaged(f"this parent is in another bucket, {name}: verify that one by itself")
    return _InBucket(bucket, key)


class _Claims:
    """Whether manifests lie where their runs have claimed room for them."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._left: list[str] = []

    def problems(self, uri: str, manifest: Manifest, child: Manifest | None) -> Iterator[str]:
        """See `Rule`."""
        folder = uri.removeprefix(f"s3://{self._bucket.name}/")
        if problem := misplaced(folder, manifest):
            yield f"it {problem}"
        elif child is None or child.run.uid != manifest.run.uid:
            if manifest.run.uid in self._left:
                yield f"it is of run {manifest.run.uid}, which the chain has left before"
            self._left.append(manifest.run.uid)
            yield from self._owner(folder.removesuffix(place_of(manifest)).rstrip("/"), manifest)

    def _owner(self, root: str, manifest: Manifest) -> Iterator[str]:
        """Whether the run's folder was claimed by the run that the manifest names, with its config."""
        where = f"s3://{self._bucket.name}/{root}/{RUN}"
        try:
            record = RunRecord.from_json(self._bucket.get(f"{root}/{RUN}")[0])
        except Missing:
            yield f"{where} is missing: nothing says whose folder this is"
            return
        except ValidationError as e:
            yield f"{where} cannot be read: {e.errors(include_url=False, include_input=False)[0]['msg']}"
            return
        if record.run.uid != manifest.run.uid:
            yield f"{where} is of run {record.run.uid}, its manifest of {manifest.run.uid}"
        elif record.config_digest != manifest.config_digest:
            yield f"{where} has config digest {record.config_digest}, its manifest another"
