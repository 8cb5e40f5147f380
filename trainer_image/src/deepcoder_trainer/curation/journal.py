"""Verdicts on official solutions, kept so that no program is judged twice, whatever ends the process.

A JSON Lines file; a line is a key and whether it passed. The key is the SHA-256 of all that a verdict depends on: the
program, the tests in order, how it is called, its limits, the comparison. So a journal is good for any later curation
of the same problems, in any order and under any name, and for nothing else.

`put` returns when the verdict is on the disk. One fsync serves all verdicts that came while the one before was under
way, or the disk would set the pace. A line that a crash cut short is cut off when the file is opened again; a journal
that is not one is refused rather than overwritten.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
from pathlib import Path

from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.types import Problem


def verdict_key(problem: Problem, code: str) -> str:
    """What a verdict is filed under."""
    digest = hashlib.sha256()
    settings = [
        problem.kind.value,
        problem.fn_name,
        problem.time_limit_s,
        problem.memory_limit_mb,
        problem.scoring.value,
        len(problem.tests),
    ]
    digest.update(json.dumps(settings).encode())
    for text in (code, *(t for test in problem.tests for t in (test.input, test.output))):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()


class Journal:
    """Opened by one process at a time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._verdicts: dict[str, bool] = {}
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock()
            self._load()
        except BaseException:
            os.close(self._file)
            raise
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._verdicts)

    def get(self, key: str) -> bool | None:
        """The verdict, None where there is none yet."""
        return self._verdicts.get(key)

    async def put(self, key: str, passed: bool, seconds: float) -> None:
        """Keep a verdict; it is on the disk when this returns. Raises OSError where it cannot be written."""
        self._verdicts[key] = passed
        line = json.dumps({"key": key, "passed": passed, "seconds": round(seconds, 3)}).encode() + b"\n"
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((line, written))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())
        await written

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._file)

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    await asyncio.to_thread(self._write, b"".join(line for line, _ in batch))
                except OSError as error:
                    for _, written in batch:
                        if not written.done():
                            written.set_exception(error)
                    continue
                for _, written in batch:
                    if not written.done():
                        written.set_result(None)
        finally:
            self._writing = None

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        os.fsync(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadConfig(
                f"{self._path} is in use by another curation: wait for it, or give another --output-dir"
            ) from None

    def _load(self) -> None:
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # cut short by a crash: it was never promised
                try:
                    entry = json.loads(line)
                    self._verdicts[str(entry["key"])] = bool(entry["passed"])
                except (ValueError, KeyError, TypeError):
                    raise BadConfig(
                        f"{self._path}:{number}: not a journal of verdicts: move the file away to judge anew"
                    ) from None
                end += len(line)
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
