"""Stores responses and verdicts of a running evaluation, so that no sample is sampled or judged twice.

The journal is JSON Lines in parts `eval/<key>/parts/<target>/<set>/<writer>-<number>.jsonl`. Each part is put once
under its own name, because an object store has no append and two attempts must never write the same object. One part is
put at a time, with everything since the part before, at least `SECONDS` apart, so a killed process loses only what came
since the last part. A response is one line and its verdict another: a response without a verdict is judged again, but
not sampled again. Parts are deleted when the results are committed. A part that cannot be put is logged and tried again
with the next one. If the parts of earlier processes cannot be read, the evaluation ends, because continuing without
them would spend the GPU time again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import uuid
from dataclasses import dataclass

from deepcoder_trainer.checkpoint.errors import StorageError
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.transfer import retried
from deepcoder_trainer.evaluation.answers import Answer
from deepcoder_trainer.types import Outcome

log = logging.getLogger(__name__)

SECONDS = 5.0
"""Minimum seconds between two parts; the first ones come sooner."""

Place = tuple[int, int]
"""Group and index of a sample."""


@dataclass(frozen=True)
class Known:
    """The stored state of a sample."""

    answer: Answer
    outcome: Outcome | None = None


class Journal:
    """The journal of one target on one problem set."""

    def __init__(self, store: ObjectStore, prefix: str, seconds: float = SECONDS) -> None:
        self._store, self._prefix, self._seconds = store, prefix, seconds
        self._writer = uuid.uuid4().hex[:12]
        self._lines: list[bytes] = []
        self._adding = threading.Lock()
        """Held only while lines are added (by the event loop) or taken (by a thread)."""
        self._part = 0
        self._putting = threading.Lock()
        self._writing: asyncio.Task[None] | None = None
        self.known: dict[Place, Known] = {}

    async def load(self) -> None:
        """Read the parts of earlier processes. Raises StorageError if storage stays unavailable."""
        await asyncio.to_thread(self._read)

    def answered(self, place: Place, answer: Answer) -> None:
        """Record a response."""
        self.known[place] = Known(answer)
        self._keep(place, {"answer": [answer.text, answer.finish, answer.tokens]})

    def judged(self, place: Place, outcome: Outcome) -> None:
        """Record a verdict; the error of a failed judge is not recorded."""
        if outcome.reward is not None:
            values = [outcome.reward, outcome.verdict, outcome.seconds, outcome.attempts]
            self._keep(place, {"of": _name(self.known[place].answer), "outcome": values})

    async def flush(self) -> None:
        """Put all lines that are not in storage yet."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
            self._writing = None
        await asyncio.shield(asyncio.to_thread(self._put))

    def _keep(self, place: Place, line: dict[str, object]) -> None:
        data = json.dumps({"place": place, **line}).encode() + b"\n"
        with self._adding:
            self._lines.append(data)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while self._lines:
            await asyncio.sleep(min(self._seconds, 1.0 + self._part))
            await asyncio.to_thread(self._put)
        self._writing = None

    def _put(self) -> None:
        with self._putting:  # a part that is being put keeps its number
            with self._adding:
                lines, self._lines = self._lines, []
            if not lines:
                return
            try:
                self._store.put_bytes(f"{self._prefix}/{self._writer}-{self._part:06d}.jsonl", b"".join(lines))
                self._part += 1
            except StorageError as error:
                with self._adding:
                    self._lines[:0] = lines
                log.error("samples of %s could not be kept yet: %s", self._prefix, error)

    def _read(self) -> None:
        outcomes: dict[tuple[Place, str], Outcome] = {}
        for found in retried(lambda: self._store.list(f"{self._prefix}/"), f"listing of {self._prefix}"):
            for line in self._part_of(found.key).splitlines():
                try:
                    entry = json.loads(line)
                    group, index = entry["place"]
                    if "answer" in entry:
                        self.known.setdefault((group, index), Known(Answer(*entry["answer"])))
                    else:
                        outcomes.setdefault(((group, index), entry["of"]), Outcome(*entry["outcome"]))
                except (ValueError, KeyError, TypeError) as error:
                    log.error("a line of %s is passed over: %s", found.key, error)
        for place, known in self.known.items():
            self.known[place] = Known(known.answer, outcomes.get((place, _name(known.answer))))

    def _part_of(self, key: str) -> bytes:
        return retried(lambda: self._store.get_bytes(key), f"download of {key}")


def _name(answer: Answer) -> str:
    """Identifies the response that a verdict belongs to: two attempts may have sampled the same index."""
    return hashlib.sha256(answer.text.encode()).hexdigest()[:16]
