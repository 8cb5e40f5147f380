"""Caches the merged steps of runs: attempts with nothing new are not read again, unchanged runs not parsed again.

The cache is bounded by the bytes of the metrics. A run with more than `_MOST_BYTES` or `_MOST_FIGURES` of them is
refused.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field

from deepcoder_client.errors import StorageError, StorageFault
from deepcoder_client.run_folder import RunFolder
from deepcoder_contracts.steps import merge_steps
from deepcoder_web.storage_threads import Budget
from deepcoder_web.views import Steps

_MOST_BYTES = 40 << 20
_MOST_FIGURES = 1_500_000
"""Largest number of figures of a run. The bytes alone are no bound, because short figures expand more in memory."""
_KEPT_BYTES = 48 << 20
_UNPACKED = 8
"""Memory of metrics during parsing, as a multiple of their text."""


@dataclass
class _Run:
    """The cached data of a run."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    lines: dict[tuple[str, int], tuple[object, bytes]] = field(default_factory=dict)
    """By (stage, ordinal): version of the attempt's metrics.jsonl, and its content, compressed."""
    version: object = None
    steps: Steps = field(default_factory=lambda: Steps(()))
    size: int = 0


class Curves:
    """The steps of runs. Thread-safe."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._lock = threading.Lock()

    def steps(self, folder: RunFolder) -> Steps:
        """Return all steps of a run."""
        uid = folder.run.metadata.uid
        with self._lock:
            known = self._runs.setdefault(uid, _Run())
            self._runs.move_to_end(uid)
        with known.lock:
            steps = self._merged(folder, known)
        with self._lock:
            while len(self._runs) > 1 and sum(run.size for run in self._runs.values()) > _KEPT_BYTES:
                self._runs.popitem(last=False)
        return steps

    def _merged(self, folder: RunFolder, known: _Run) -> Steps:
        objects = folder.metrics_objects()
        version = tuple((stage, ordinal, s.size, s.modified, s.etag) for stage, ordinal, s in objects)
        if version == known.version:
            return known.steps
        size = sum(stored.size for _, _, stored in objects)
        if size > _MOST_BYTES:
            raise StorageError(f"{size} bytes of metrics are more than {_MOST_BYTES}", StorageFault.TOO_LARGE)
        with self._budget.take(size * _UNPACKED):
            lines: dict[tuple[str, int], tuple[object, bytes]] = {}
            for place in version:
                before = known.lines.get(place[:2])
                if before is None or before[0] != place:
                    text = "\n".join(folder.read_metrics(*place[:2]))
                    before = (place, zlib.compress(text.encode(), 1))
                lines[place[:2]] = before
            figures = sum(zlib.decompress(packed).count(b'"') // 2 for _, packed in lines.values())
            if figures > _MOST_FIGURES:
                raise StorageError(f"{figures} figures are more than {_MOST_FIGURES}", StorageFault.TOO_LARGE)
            steps = Steps(
                merge_steps((n, zlib.decompress(packed).decode().splitlines()) for (_, n), (_, packed) in lines.items())
            )
        known.version, known.lines, known.steps, known.size = version, lines, steps, size
        return steps
