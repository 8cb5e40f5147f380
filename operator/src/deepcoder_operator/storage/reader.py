"""Answers a planner's `StorageQuery`: what a run has left in its bucket, verified. Blocking, for threads.

`lineage.candidates` decides which checkpoint counts, from the storage server's own times of commits and claims. A
manifest of another run or config, or one whose files differ, is rejected with a reason, and the next older one is
tried.

RUN.json is written before a run's first RayJob is created. This shows, before any GPU is requested, that the
credentials may write and that the server supports conditional writes. By then the run's config is fixed in its status,
so no later release can continue the folder with another config. A trainer that is started by hand writes RUN.json
itself.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from deepcoder_contracts.api.run_spec import FromCheckpoint
from deepcoder_contracts.api.run_status import CheckpointStatus
from deepcoder_contracts.base import Digest, sha256_digest
from deepcoder_contracts.chain import Damaged, Missing, read_manifest, verify_files
from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.layout import (
    MANIFEST,
    RUN,
    attempts_dir,
    checkpoint_dir,
    claim_key,
    exit_key,
    parse_checkpoint_dir,
    parse_evaluation_dir,
)
from deepcoder_contracts.lineage import StoredCheckpoint, candidates
from deepcoder_contracts.manifest import Manifest, ManifestKind, ParentRef, RunIdentity, RunRecord
from deepcoder_operator.domain.world import StoredStage
from deepcoder_operator.storage.findings import Findings
from deepcoder_operator.storage.s3 import Bucket, Exists, StorageProblem

MAX_LOOKED_AT = 20
"""Largest number of checkpoints that are examined. Older ones are pruned anyway."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder in its bucket."""

    bucket: Bucket
    key: str
    """Key prefix, without a slash at either end."""
    run: RunIdentity
    config_digest: Digest


def check_folder(bucket: Bucket, key: str, run: RunIdentity, config_digest: Digest | None) -> bool:
    """Whether RUN.json exists. Raises `StorageProblem` if it belongs to another run, or has another config than
    `config_digest` (None: any)."""
    key = f"{key}/{RUN}"
    where = f"s3://{bucket.name}/{key}"
    try:
        data, _ = bucket.get(key)
    except Missing:
        return False
    try:
        record = RunRecord.from_json(data)
    except ValidationError as e:
        raise StorageProblem("PrefixTaken", f"{where} is not a RUN.json: choose another prefix") from e
    if record.run.uid != run.uid:
        raise StorageProblem("PrefixTaken", f"{where} belongs to another run ({record.run.uid}): choose another prefix")
    if config_digest not in (None, record.config_digest):
        raise StorageProblem(
            "ConfigMismatch",
            f"{where} was created with config {record.config_digest}, but it is now {config_digest}: make a new run",
        )
    return True


def claim_folder(folder: RunFolder, *, looked: bool = False) -> None:
    """Write RUN.json unless it exists. Raises `StorageProblem` if the folder belongs to another run or is not writable.

    `looked` says that the caller, such as admission, has just seen the folder free, so that it is not checked first.
    """
    if not looked and check_folder(folder.bucket, folder.key, folder.run, folder.config_digest):
        return
    record = RunRecord(run=folder.run, config_digest=folder.config_digest, created_at=datetime.now(UTC))
    try:
        folder.bucket.put_once(f"{folder.key}/{RUN}", record.to_json())
    except Exists:
        check_folder(folder.bucket, folder.key, folder.run, folder.config_digest)


def resolve_origin(bucket: Bucket, origin: FromCheckpoint, findings: Findings) -> ParentRef:
    """Verify the checkpoint in spec.from and return it with its digest. Raises `StorageProblem`."""
    name, _, folder = origin.uri.removeprefix("s3://").partition("/")
    if name != bucket.name:
        raise StorageProblem("CheckpointElsewhere", f"spec.from is in bucket {name}: copy it into {bucket.name} first")
    folder = folder.rstrip("/")
    try:
        data, _ = bucket.get(f"{folder}/{MANIFEST}")
        manifest = read_manifest(data, origin.uri)
        digest = sha256_digest(data)
        _verify(bucket, folder, manifest, digest, findings)
    except Missing:
        raise StorageProblem("CheckpointNotFound", f"spec.from: {origin.uri}/{MANIFEST} does not exist") from None
    except Damaged as e:
        raise StorageProblem("CheckpointDamaged", f"spec.from: {e}") from e
    if manifest.kind is not ManifestKind.CHECKPOINT:
        raise StorageProblem(
            "CheckpointNotFound", f"spec.from: {origin.uri} is of kind {manifest.kind}, not a checkpoint"
        )
    if origin.digest not in (None, digest):
        raise StorageProblem("DigestMismatch", f"spec.from: {origin.uri} has digest {digest}, not {origin.digest}")
    return ParentRef(uri=origin.uri.rstrip("/"), digest=digest)


def read_stage(
    folder: RunFolder,
    stage: str,
    *,
    evaluate: bool,
    ordinal: int | None,
    known: Set[str],
    findings: Findings,
) -> StoredStage:
    """Return a stage's newest verified checkpoint or results, and how an attempt ended.

    Checkpoints with `known` digests were verified before, and are not verified again.
    """
    exit_record = _exit(folder, stage, ordinal) if ordinal else None
    if evaluate:
        return _evaluation(folder, stage, exit_record, findings)
    root = f"{folder.key}/{stage}"
    claims = _Claims(folder, stage)
    named = [n for n in map(parse_checkpoint_dir, folder.bucket.folders(f"{root}/")) if n]
    rejected: list[str] = []
    for name in sorted(named, reverse=True)[:MAX_LOOKED_AT]:
        path = checkpoint_dir(stage, name.step, name.ordinal)
        try:
            data, committed = folder.bucket.get(f"{folder.key}/{path}/{MANIFEST}")
        except Missing:
            continue
        uri = f"s3://{folder.bucket.name}/{folder.key}/{path}"
        if not candidates([StoredCheckpoint(name.step, name.ordinal, committed, path)], claims.above(name.ordinal)):
            rejected.append(f"{path} was committed after a later attempt had started")
            continue
        digest = sha256_digest(data)
        try:
            manifest = read_manifest(data, uri)
            _belongs(folder, manifest, ManifestKind.CHECKPOINT, stage)
            if (manifest.step, manifest.ordinal) != name:
                raise Damaged(f"{uri} says step {manifest.step} of attempt {manifest.ordinal}")
            if digest not in known:
                _verify_once(folder.bucket, f"{folder.key}/{path}", manifest, digest, findings)
        except Damaged as e:
            rejected.append(str(e))
            continue
        return StoredStage(
            newest=CheckpointStatus(
                uri=uri, digest=digest, stage=stage, step=manifest.step, ordinal=manifest.ordinal, final=manifest.final,
                parent_digest=manifest.parent.digest if manifest.parent else None, committed_time=committed,
            ),
            gate=manifest.gate,
            metrics=manifest.metrics,
            code_digest=manifest.code_digest,
            dataset_digest=manifest.dataset_digest,
            versions=manifest.versions,
            exit=exit_record,
            rejected=tuple(rejected),
        )  # fmt: skip
    return StoredStage(exit=exit_record, rejected=tuple(rejected))


def _evaluation(folder: RunFolder, stage: str, exit_record: ExitRecord | None, findings: Findings) -> StoredStage:
    found: list[Manifest] = []
    rejected: list[str] = []
    for name in folder.bucket.folders(f"{folder.key}/eval/"):
        path = f"eval/{name}"
        place = (folder.bucket.place, f"{folder.key}/{path}")
        if parse_evaluation_dir(path) is None or findings.stages.get(place) not in (None, stage):
            continue
        try:
            data, _ = folder.bucket.get(f"{folder.key}/{path}/{MANIFEST}")
            manifest = read_manifest(data, path)
            findings.stages.put(place, manifest.stage)
            if manifest.stage != stage:
                continue
            _belongs(folder, manifest, ManifestKind.EVALUATION, stage)
            _verify(folder.bucket, f"{folder.key}/{path}", manifest, sha256_digest(data), findings)
            found.append(manifest)
        except Missing:
            continue
        except Damaged as e:
            rejected.append(str(e))
    found.sort(key=lambda m: (m.ordinal, m.created_at))  # they were listed by a digest
    metrics: dict[str, float] = {}
    for manifest in found:
        metrics |= manifest.metrics
    return StoredStage(
        evaluated=bool(found),
        metrics=metrics,
        code_digest=found[-1].code_digest if found else None,
        versions=found[-1].versions if found else None,
        exit=exit_record,
        rejected=tuple(rejected),
    )


def _belongs(folder: RunFolder, manifest: Manifest, kind: ManifestKind, stage: str) -> None:
    if manifest.run.uid != folder.run.uid:
        raise Damaged(f"a manifest of {stage} is of another run ({manifest.run.uid})")
    if manifest.config_digest != folder.config_digest:
        raise Damaged(f"a manifest of {stage} was made with another config ({manifest.config_digest})")
    if manifest.kind is not kind or manifest.stage != stage:
        raise Damaged(f"a manifest of {stage} says that it is the {manifest.kind} of stage {manifest.stage}")


def _verify(bucket: Bucket, path: str, manifest: Manifest, digest: Digest, findings: Findings) -> None:
    """Check every file of a folder, from where the last query was cut off. Raises `Damaged`."""
    key = (bucket.place, path, digest)
    after = findings.verified.get(key) or 0
    try:
        verify_files(bucket, path, manifest, after=after, note=lambda number: findings.verified.put(key, number))
    except Damaged:
        findings.verified.drop(key)
        raise


def _verify_once(bucket: Bucket, path: str, manifest: Manifest, digest: Digest, findings: Findings) -> None:
    """Do the same. Raises `Damaged` at once if damage was found recently."""
    key = (bucket.place, path, digest)
    if text := findings.damage.get(key):
        raise Damaged(text)
    try:
        _verify(bucket, path, manifest, digest, findings)
    except Damaged as e:
        findings.damage.put(key, str(e))
        raise


class _Claims:
    """Times at which storage received the attempts' claims, requested only if they can make a difference."""

    def __init__(self, folder: RunFolder, stage: str) -> None:
        self._folder, self._stage = folder, stage
        self._ordinals: list[int] | None = None
        self._times: dict[int, datetime | None] = {}

    def above(self, ordinal: int) -> dict[int, datetime]:
        """Return the claims of later attempts. Only they can make a commit of this attempt too late."""
        if self._ordinals is None:
            names = self._folder.bucket.folders(f"{self._folder.key}/{attempts_dir(self._stage)}/")
            self._ordinals = [int(name) for name in names if name.isdigit()]
        found = {o: self._time(o) for o in self._ordinals if o > ordinal}
        return {o: at for o, at in found.items() if at is not None}

    def _time(self, ordinal: int) -> datetime | None:
        if ordinal not in self._times:
            try:
                key = f"{self._folder.key}/{claim_key(self._stage, ordinal)}"
                self._times[ordinal] = self._folder.bucket.head(key).modified
            except Missing:
                self._times[ordinal] = None
        return self._times[ordinal]


def _exit(folder: RunFolder, stage: str, ordinal: int) -> ExitRecord | None:
    try:
        data, _ = folder.bucket.get(f"{folder.key}/{exit_key(stage, ordinal)}")
        return ExitRecord.from_json(data)
    except (Missing, ValidationError):
        return None
