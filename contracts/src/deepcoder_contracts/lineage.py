"""Which checkpoint counts: the rules that operator and trainer must not disagree on.

A checkpoint exists only through its manifest, and so does an export. An attempt that was declared dead may be alive
behind a partition and commit late; its manifest is ignored when it is newer than the claim of a higher ordinal. Times
are the storage server's (`LastModified`), never a pod's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class StoredCheckpoint:
    """A committed checkpoint as a listing shows it."""

    step: int
    """Steps of its stage."""

    ordinal: int
    """Attempt that wrote it."""

    committed_at: datetime
    """When storage received its manifest."""

    path: str
    """Its folder below the run's root."""


def newest_checkpoint(
    checkpoints: Iterable[StoredCheckpoint], claims: Mapping[int, datetime]
) -> StoredCheckpoint | None:
    """The checkpoint to go on from: `candidates`' first."""
    return next(iter(candidates(checkpoints, claims)), None)


def candidates(checkpoints: Iterable[StoredCheckpoint], claims: Mapping[int, datetime]) -> list[StoredCheckpoint]:
    """Checkpoints that count, best first: highest step, then highest ordinal.

    `claims` maps ordinal to the time storage received the claim. Later entries serve when an earlier one turns out
    to be damaged.
    """

    def too_late(c: StoredCheckpoint) -> bool:
        return any(ordinal > c.ordinal and claimed < c.committed_at for ordinal, claimed in claims.items())

    valid = [c for c in checkpoints if not too_late(c)]
    return sorted(valid, key=lambda c: (c.step, c.ordinal), reverse=True)
