"""Stores verdicts on programs, so that none is judged twice even if the process is killed.

The journal is JSON Lines. A line holds a key, the result, and the version of the judge that gave it. The key is the
SHA-256 of everything else that a verdict depends on: the program, the tests in order, how it is called, its limits, the
comparison. So any later curation of the same problems by the same judge can use the journal, in any order and under any
name. Results of another judge version stay in the journal, but are not used: those programs are judged again.

`put` returns when the verdict is durable (see `journal_storage`). One write covers all verdicts that came during the
write before it; otherwise the disk would limit the speed. If the file is not a journal, it is refused and not
overwritten.
"""

from __future__ import annotations

import asyncio
import hashlib
import json

from deepcoder_trainer.checkpoint.errors import StorageError
from deepcoder_trainer.curation.journal_storage import Log
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.types import Problem


def verdict_key(problem: Problem, code: str) -> str:
    """Return the key of a verdict on a program."""
    digest = hashlib.sha256()
    settings = [
        problem.kind.value,
        problem.fn_name,
        problem.time_limit_s,
        problem.memory_limit_mb,
        problem.scoring.value,
        len(problem.tests),
    ]
    if problem.float_tolerance is not None:  # otherwise left out, so that keys of older journals stay valid
        settings.append(problem.float_tolerance)
    digest.update(json.dumps(settings).encode())
    for text in (code, *(t for test in problem.tests for t in (test.input, test.output))):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()


class Journal:
    """A durable map from keys to verdicts: passed or not."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._judge: str | None = None
        self._verdicts: dict[tuple[str, str | None], bool] = {}
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        try:
            self._load()
        except BaseException:
            log.close()
            raise

    def __len__(self) -> int:
        return len(self._verdicts)

    @property
    def where(self) -> str:
        """The location, for messages."""
        return self._log.where

    def judged_by(self, version: str | None) -> None:
        """Read and write verdicts of this judge version from now on; None: a judge without versions."""
        self._judge = version

    def get(self, key: str) -> bool | None:
        """Return the judge's verdict, or None if there is none yet."""
        return self._verdicts.get((key, self._judge))

    async def put(self, key: str, passed: bool, seconds: float) -> None:
        """Store a verdict, which is durable when this returns. Raises OSError or StorageError if that fails."""
        entry = {"key": key, "passed": passed, "seconds": round(seconds, 3)}
        line = json.dumps(entry if self._judge is None else entry | {"judge": self._judge}).encode() + b"\n"
        filed = key, self._judge
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((line, written))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())
        await written
        self._verdicts[filed] = passed

    def close(self) -> None:
        """Release the log."""
        self._log.close()

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    await asyncio.to_thread(self._log.append, b"".join(line for line, _ in batch))
                except (OSError, StorageError) as error:
                    for _, written in batch:
                        if not written.done():
                            written.set_exception(error)
                    continue
                for _, written in batch:
                    if not written.done():
                        written.set_result(None)
        finally:
            self._writing = None

    def _load(self) -> None:
        for place, text in self._log.read():
            try:
                entry = json.loads(text)
                self._verdicts[str(entry["key"]), entry.get("judge")] = bool(entry["passed"])
            except (ValueError, KeyError, TypeError):
                raise BadConfig(f"{place}: not a journal of verdicts: move it away to judge again") from None
