"""Decides which checkpoints keep their payload. Manifests are never removed: the chain stays readable to its root."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deepcoder_contracts.lineage import StoredCheckpoint


def payloads_to_prune(
    valid: Sequence[StoredCheckpoint],
    keep_last: int,
    keep_every: int | None,
    pinned: frozenset[str],
    is_final: Callable[[StoredCheckpoint], bool],
) -> list[StoredCheckpoint]:
    """Those of a stage's checkpoints whose payload may go, given `lineage.candidates`' order (best first).

    Kept are the newest `keep_last` (at least one), multiples of `keep_every`, those that another run has started from
    (`pinned`, by path), and the ones that ended the stage. `is_final` is asked only about the rest, since it may have
    to read a manifest.
    """
    return [
        c
        for c in valid[max(1, keep_last) :]
        if not (keep_every and c.step % keep_every == 0) and c.path not in pinned and not is_final(c)
    ]
