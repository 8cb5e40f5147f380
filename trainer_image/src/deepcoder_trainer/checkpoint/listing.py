"""Parses one listing of a stage's folder: checkpoints and exports with and without manifest, payloads, claims."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from deepcoder_contracts.layout import MANIFEST, PIN, CheckpointName, parse_checkpoint_dir, parse_export_dir
from deepcoder_contracts.lineage import StoredCheckpoint, candidates
from deepcoder_trainer.checkpoint.storage import StoredObject

_CLAIM = re.compile(r"/attempts/(\d{3,})/claim\.json$")


@dataclass(frozen=True)
class StageListing:
    """The contents of one stage's folder."""

    committed: tuple[StoredCheckpoint, ...]
    """Checkpoints with a manifest."""

    exported: tuple[StoredCheckpoint, ...]
    """Exports with a manifest."""

    with_payload: frozenset[str]
    """Folders of checkpoints and exports that hold more than a manifest."""

    pinned: frozenset[str]
    """Folders of checkpoints that another run has started from."""

    uncommitted: Mapping[str, CheckpointName]
    """Folders without a manifest, with their step and attempt."""

    claims: Mapping[int, datetime]
    """Ordinal of an attempt to the time at which storage received its claim."""

    def candidates(self) -> list[StoredCheckpoint]:
        """Return the checkpoints that count, best first."""
        return candidates(self.committed, self.claims)

    def exports(self) -> list[StoredCheckpoint]:
        """Return the exports that count, best first."""
        return candidates(self.exported, self.claims)


def read_listing(objects: Iterable[StoredObject]) -> StageListing:
    """Parse all objects below `<stage>/`."""
    committed: list[StoredCheckpoint] = []
    exported: list[StoredCheckpoint] = []
    claims: dict[int, datetime] = {}
    payload: dict[str, CheckpointName] = {}
    pinned: set[str] = set()
    for o in objects:
        if match := _CLAIM.search(o.key):
            claims[int(match[1])] = o.modified_at
        elif place := _place(o.key):
            folder, name, made = place[0], place[1], exported if place[2] else committed
            if o.key == f"{folder}/{MANIFEST}":
                made.append(StoredCheckpoint(name.step, name.ordinal, o.modified_at, folder))
            elif o.key.startswith(f"{folder}/{PIN}"):
                pinned.add(folder)
            else:
                payload[folder] = name
    done = {c.path for c in (*committed, *exported)}
    return StageListing(
        committed=tuple(committed),
        exported=tuple(exported),
        with_payload=frozenset(payload),
        pinned=frozenset(pinned),
        uncommitted={f: name for f, name in payload.items() if f not in done},
        claims=claims,
    )


def _place(key: str) -> tuple[str, CheckpointName, bool] | None:
    """Return the folder of an object's checkpoint or export, its name, and whether it is an export; else None."""
    segments = key.split("/")
    folder = "/".join(segments[:2])
    if name := parse_checkpoint_dir(folder):
        return folder, name, False
    folder = "/".join(segments[:3])
    if name := parse_export_dir(folder):
        return folder, name, True
    return None
