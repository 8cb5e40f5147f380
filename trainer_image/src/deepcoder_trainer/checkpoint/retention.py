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
    """Return the checkpoints whose payload may be removed, of a stage's checkpoints in the order of `candidates`.

    These keep their payload: the newest `keep_last` (at least one), steps that are multiples of `keep_every`,
    checkpoints from which another run has started (`pinned`, by path), and those that ended the stage. `is_final` is
    called last, because it may have to read a manifest.
    """
    return [
        c
        for c in valid[max(1, keep_last) :]
        if not (keep_every and c.step % keep_every == 0) and c.path not in pinned and not is_final(c)
    ]
