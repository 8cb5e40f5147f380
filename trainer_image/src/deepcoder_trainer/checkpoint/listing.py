"""One listing of a stage's folder, taken apart: checkpoints with and without manifest, payloads, claims."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from deepcoder_contracts.layout import MANIFEST, parse_checkpoint_dir
from deepcoder_contracts.lineage import StoredCheckpoint, candidates
from deepcoder_trainer.checkpoint.storage import StoredObject

PIN = "pin-"
"""Beginning of the name, below a checkpoint's folder, that a run leaves there when it starts from it."""

_CLAIM = re.compile(r"/attempts/(\d{3,})/claim\.json$")


@dataclass(frozen=True)
class StageListing:
    """What storage holds of one stage."""

    committed: tuple[StoredCheckpoint, ...]
    """Checkpoints with a manifest."""

    with_payload: frozenset[str]
    """Folders of checkpoints that hold something beside a manifest."""

    pinned: frozenset[str]
    """Folders of checkpoints that another run has started from."""

    uncommitted: Mapping[str, int]
    """Folders without a manifest, and the ordinal that wrote into them."""

    claims: Mapping[int, datetime]
    """Ordinal to the time storage received its claim."""

    def candidates(self) -> list[StoredCheckpoint]:
        """Checkpoints that count, best first."""
        return candidates(self.committed, self.claims)


def read_listing(objects: Iterable[StoredObject]) -> StageListing:
    """From all objects below `<stage>/`."""
    committed: list[StoredCheckpoint] = []
    claims: dict[int, datetime] = {}
    payload: dict[str, int] = {}
    pinned: set[str] = set()
    for o in objects:
        if match := _CLAIM.search(o.key):
            claims[int(match[1])] = o.modified_at
            continue
        folder = "/".join(o.key.split("/")[:2])
        name = parse_checkpoint_dir(folder)
        if name is None:
            continue
        if o.key == f"{folder}/{MANIFEST}":
            committed.append(StoredCheckpoint(name.step, name.ordinal, o.modified_at, folder))
        elif o.key.startswith(f"{folder}/{PIN}"):
            pinned.add(folder)
        else:
            payload[folder] = name.ordinal
    done = {c.path for c in committed}
    return StageListing(
        committed=tuple(committed),
        with_payload=frozenset(payload),
        pinned=frozenset(pinned),
        uncommitted={f: ordinal for f, ordinal in payload.items() if f not in done},
        claims=claims,
    )
