"""Which checkpoint counts: the rules on which operator and trainer must agree.

A checkpoint or an export exists only through its manifest. An attempt that was declared dead may be alive behind a
network partition and commit late. Its manifest is ignored if it is newer than the claim of a higher ordinal. Times are
the storage server's (`LastModified`), never a pod's clock.

Digests bind a manifest to its ancestors. They do not show whether child and parent belong together, because whoever
writes a manifest also writes the parent's digest. `misplaced` and `broken_link` check that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from deepcoder_contracts.layout import checkpoint_dir, evaluation_dir, export_dir
from deepcoder_contracts.manifest import BY_HAND, Manifest, ManifestKind


@dataclass(frozen=True)
class StoredCheckpoint:
    """A committed checkpoint as a listing shows it."""

    step: int
    """Step of its stage."""

    ordinal: int
    """Number of the attempt that wrote it."""

    committed_at: datetime
    """When storage received its manifest."""

    path: str
    """Its folder below the run's root."""


def newest_checkpoint(
    checkpoints: Iterable[StoredCheckpoint], claims: Mapping[int, datetime]
) -> StoredCheckpoint | None:
    """Return the checkpoint to continue from: the first of `candidates`."""
    return next(iter(candidates(checkpoints, claims)), None)


def candidates(checkpoints: Iterable[StoredCheckpoint], claims: Mapping[int, datetime]) -> list[StoredCheckpoint]:
    """Return the checkpoints that count, best first: highest step, then highest ordinal.

    `claims` maps each ordinal to the time at which storage received its claim. Later entries are fallbacks for an
    earlier one that turns out to be damaged.
    """

    def too_late(c: StoredCheckpoint) -> bool:
        return any(ordinal > c.ordinal and claimed < c.committed_at for ordinal, claimed in claims.items())

    valid = [c for c in checkpoints if not too_late(c)]
    return sorted(valid, key=lambda c: (c.step, c.ordinal), reverse=True)


def place_of(manifest: Manifest) -> str:
    """Return the folder, below its run's, that a manifest belongs in."""
    if manifest.kind is ManifestKind.EVALUATION:
        return evaluation_dir(manifest.evaluation_key or "")
    make = export_dir if manifest.kind is ManifestKind.EXPORT else checkpoint_dir
    return make(manifest.stage, manifest.step, manifest.ordinal)


def misplaced(folder: str, manifest: Manifest) -> str | None:
    """Return why a manifest does not belong in its folder, or None if it does."""
    place = place_of(manifest)
    return None if f"/{folder.strip('/')}".endswith(f"/{place}") else f"is the manifest of {place}"


_OF_AN_ATTEMPT = ("code_digest", "versions", "image", "image_id", "accelerator")
"""Fields that are equal in all manifests of an attempt, because it runs in one set of pods."""


def _differ(a: object, b: object) -> bool:
    """Whether two known values differ. Nodes may name one image in several ways, but its digest is the same."""
    if isinstance(a, str) and isinstance(b, str) and "@sha256:" in a and "@sha256:" in b:
        a, b = a.rpartition("@")[2], b.rpartition("@")[2]
    return bool(a) and bool(b) and a != b


def cut_short(manifest: Manifest) -> str | None:
    """Return why a manifest without a parent cannot start a chain, or None if it can or has a parent."""
    if manifest.parent is not None or manifest.kind is ManifestKind.EVALUATION:
        return None
    if manifest.kind is ManifestKind.EXPORT:
        return "is an export and does not name the checkpoint that it was made from: its chain is cut"
    if manifest.total_steps > manifest.step:
        return (
            f"has seen {manifest.total_steps} steps, {manifest.step} of them in its stage, and names no parent: its "
            "chain is cut"
        )
    return None


def broken_link(child: Manifest, parent: Manifest) -> str | None:
    """Return why a manifest cannot descend from the parent that it names, or None if it can."""
    if parent.kind is ManifestKind.EVALUATION:
        return "has an evaluation as its parent"
    if parent.kind is ManifestKind.EXPORT and child.kind is not ManifestKind.EVALUATION:
        return "has an export as its parent, which only an evaluation can have"
    if child.run.uid != parent.run.uid:
        return None  # spec.from: another run's checkpoint, with a config of its own
    if child.config_digest != parent.config_digest:
        return f"has config digest {child.config_digest}, its parent of the same run {parent.config_digest}"
    if child.kind is not ManifestKind.EVALUATION and child.seed != parent.seed:  # evaluations have their own seeds
        return f"has seed {child.seed}, its parent of the same run {parent.seed}"
    if _differ(child.dataset_digest, parent.dataset_digest):  # an attempt stops if the problems have changed
        return f"has dataset digest {child.dataset_digest}, its parent of the same run {parent.dataset_digest}"
    if (child.stage_index == parent.stage_index) != (child.stage == parent.stage):
        return f"calls stage {child.stage_index} {child.stage}, its parent {parent.stage_index} {parent.stage}"
    if child.stage_index < parent.stage_index:
        return f"is of stage {child.stage}, its parent of the later stage {parent.stage}"
    if child.run.namespace == BY_HAND and child.stage != parent.stage:
        return None  # in a run by hand, each stage numbers its attempts from 1
    if child.ordinal < parent.ordinal:
        return f"is of attempt {child.ordinal}, its parent of the later attempt {parent.ordinal}"
    if child.ordinal == parent.ordinal and child.kind is not ManifestKind.EVALUATION:
        differs = next((name for name in _OF_AN_ATTEMPT if _differ(getattr(child, name), getattr(parent, name))), None)
        if differs is not None:
            told = f"{getattr(child, differs)}, its parent of the same attempt {getattr(parent, differs)}"
            return f"has {differs.replace('_', ' ')} {told}"
    goes_on = child.kind is ManifestKind.CHECKPOINT and child.stage == parent.stage
    if goes_on and (child.step, child.ordinal) <= (parent.step, parent.ordinal):
        return f"is of step {child.step}, its parent of step {parent.step} by no earlier attempt"
    return None
