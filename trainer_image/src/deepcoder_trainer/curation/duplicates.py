"""Groups problems with the same or nearly the same statement into clusters.

MinHash with banding proposes pairs, and the exact Jaccard similarity decides. So a threshold means what it says, and
chance can only hide a pair: one in 330,000 at similarity 0.8, one in 360 at 0.7. Each problem is compared with the
first problem of each candidate cluster, in reading order, so that a cluster with thousands of copies does not make the
cost quadratic.

The signature is our own, twenty lines of numpy. The contamination check needs the hashed numbers anyway, while
libraries take strings and hash them again; datasketch takes 25 s for what takes two here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from deepcoder_trainer.curation.shingles import Shingles, jaccard

_BANDS, _ROWS = 32, 5
_SEED = 20250408


@dataclass
class Cluster:
    """Problems of which one is kept: the first that passes verification."""

    members: list[int]
    """Indices of problems, in reading order."""
    similarity: dict[int, float] = field(default_factory=dict)
    """Each member's similarity to the first member; 1.0: the same words."""


class Clusters:
    """Builds the clusters. Problems are added in reading order."""

    def __init__(self, threshold: float) -> None:
        self.all: list[Cluster] = []
        self._threshold = threshold
        self._sets: list[Shingles] = []
        self._exact: dict[bytes, tuple[int, float]] = {}
        self._buckets: list[dict[int, list[int]]] = [{} for _ in range(_BANDS)]
        generator = np.random.Generator(np.random.PCG64(_SEED))
        self._factors = generator.integers(0, 1 << 63, (_BANDS * _ROWS, 1), np.uint64) | np.uint64(1)
        self._offsets = generator.integers(0, 1 << 63, (_BANDS * _ROWS, 1), np.uint64)
        self._weights = generator.integers(0, 1 << 63, _ROWS, np.uint64) | np.uint64(1)

    def add(self, index: int, found: Sequence[str], shingles: Shingles) -> None:
        """Add problem `index`, with the words `found` and their shingles, to its cluster or to a new one."""
        digest = blake2b(" ".join(found).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        known, similarity = self._exact.get(digest, (None, 1.0))
        if known is None and len(shingles):
            keys = self._band_keys(shingles)
            known, similarity = self._nearest(keys, shingles)
            if known is None:
                for bucket, key in zip(self._buckets, keys, strict=True):
                    bucket.setdefault(key, []).append(len(self.all))
        if known is None:
            known, similarity = len(self.all), 1.0
            self.all.append(Cluster([]))
            self._sets.append(shingles)
        self._exact.setdefault(digest, (known, similarity))
        self.all[known].members.append(index)
        self.all[known].similarity[index] = similarity

    def _nearest(self, keys: list[int], shingles: Shingles) -> tuple[int | None, float]:
        """Return the cluster whose first problem is most similar, on a tie the earliest, and the similarity.

        Without a cluster above the threshold, return None.
        """
        proposed = {c for bucket, key in zip(self._buckets, keys, strict=True) for c in bucket.get(key, ())}
        best, nearest = self._threshold, None
        for cluster in sorted(proposed):
            similarity = jaccard(shingles, self._sets[cluster])
            if similarity >= best and (nearest is None or similarity > best):
                best, nearest = similarity, cluster
        return nearest, best

    def _band_keys(self, shingles: Shingles) -> list[int]:
        signature = _signature(shingles, self._factors, self._offsets).reshape(_BANDS, _ROWS)
        return [int(key) for key in (signature * self._weights).sum(axis=1, dtype=np.uint64)]


def _signature(
    shingles: Shingles, factors: npt.NDArray[np.uint64], offsets: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Return the MinHash signature: [_BANDS * _ROWS] minimum of each hash over the set.

    The high bits of a product are the random ones, and they decide the minimum.
    """
    hashed = shingles * factors
    hashed += offsets
    return hashed.min(axis=1)
