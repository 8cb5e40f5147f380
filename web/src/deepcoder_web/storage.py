"""What runs have stored, read for the page: folders kept open, what does not change kept for a while, threads shared.

A bucket that does not answer costs those who look at its runs, and no others: each run has `AT_ONCE` questions under
way, others wait for a moment and are told to come again then (`Busy`), and a server that the configuration does not
allow is never asked.
Blocking work is in threads; a question that takes longer than `DEADLINE_SECONDS` is given up, its thread ends by the
client's own deadlines.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from deepcoder_client.client import Client
from deepcoder_client.errors import StorageError
from deepcoder_client.folder import RunFolder
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.chain import Damaged, Missing
from deepcoder_contracts.steps import StepRecord, merge_steps
from deepcoder_web import views

AT_ONCE = 3
WAIT_SECONDS = 15.0
DEADLINE_SECONDS = 60.0
THREADS = 24
_FOLDERS = 64
_TABLES = 4
"""Steps, of all runs together, whose rollouts stay in memory: a step of a large run has tens of megabytes."""

T = TypeVar("T")


class Busy(Exception):
    """Others ask the same storage already."""


@dataclass
class _Folder:
    """A run's folder and what was read of it."""

    folder: RunFolder
    at_once: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    lines: dict[tuple[str, int], tuple[object, bytes]] = field(default_factory=dict)
    """(stage, ordinal) to what told its version, and its metrics.jsonl, compressed: many runs stay open."""


class Storage:
    """Answers from buckets."""

    def __init__(self, client: Client, allowed_endpoints: Sequence[str]) -> None:
        self._client, self._allowed = client, {e.rstrip("/") for e in allowed_endpoints}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="storage")
        self._folders: OrderedDict[str, _Folder] = OrderedDict()
        self._tables: OrderedDict[tuple[str, str, int], pa.Table] = OrderedDict()
        self._tables_lock = threading.Lock()

    async def attempts(self, run: DeepCoderRun) -> dict[str, Any]:
        """Attempts and how they ended."""
        return {"attempts": await self._ask(run, lambda held: views.attempt_rows(run, held.folder.attempts()))}

    async def steps(self, run: DeepCoderRun, after: str) -> dict[str, Any]:
        """Columns by step."""
        return await self._ask(run, lambda held: views.steps_document(_steps(held), after))

    async def sample_steps(self, run: DeepCoderRun) -> dict[str, Any]:
        """Of which steps rollouts are stored."""

        def ask(held: _Folder) -> dict[str, Any]:
            return {"steps": [{"stage": stage, "step": step} for stage, step in held.folder.sample_steps()]}

        return await self._ask(run, ask)

    async def samples(self, run: DeepCoderRun, stage: str, step: int, verdict: str, order: str) -> dict[str, Any]:
        """Rollouts of a step, without their texts."""

        def ask(held: _Folder) -> dict[str, Any]:
            table = self._table(held, stage, step)
            return views.sample_rows(table.drop_columns(["prompt", "response"]).to_pylist(), verdict, order)

        return await self._ask(run, ask)

    async def sample(self, run: DeepCoderRun, stage: str, step: int, group: int, index: int) -> dict[str, Any] | None:
        """One rollout, None where there is none; of several draws the one that was trained on."""

        def ask(held: _Folder) -> dict[str, Any] | None:
            table = self._table(held, stage, step)
            places = zip(table["group_id"].to_pylist(), table["index"].to_pylist(), strict=True)
            found = [table.slice(i, 1).to_pylist()[0] for i, place in enumerate(places) if place == (group, index)]
            found.sort(key=lambda row: row.get("draw", 0))
            return views.sample_page(found[-1]) if found else None

        return await self._ask(run, ask)

    async def lineage(self, run: DeepCoderRun) -> dict[str, Any]:
        """The chain from the newest checkpoint to the base, each link checked as it is walked."""
        latest = run.status.latest_checkpoint
        if latest is None:
            return {"nodes": [], "problem": None}

        def ask(held: _Folder) -> dict[str, Any]:
            nodes: list[dict[str, Any]] = []
            try:
                nodes.extend(views.lineage_node(link) for link in held.folder.lineage())
            except (Damaged, Missing) as error:
                return {"nodes": nodes, "problem": str(error) or "an object is missing"}
            return {"nodes": nodes, "problem": None}

        return await self._ask(run, ask)

    async def evaluations(self, run: DeepCoderRun) -> dict[str, Any]:
        """Committed evaluations."""
        return await self._ask(run, lambda held: views.evaluations_document(held.folder.evaluations()))

    async def _ask(self, run: DeepCoderRun, question: Callable[[_Folder], T]) -> T:
        held = await self._open(run)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await held.at_once.acquire()
        except TimeoutError:
            raise Busy("storage is being asked for this run already: come again in a few seconds") from None
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._threads, question, held)
        except TimeoutError:
            raise StorageError(f"storage has not answered in {DEADLINE_SECONDS:.0f} s") from None
        finally:
            held.at_once.release()

    def _table(self, held: _Folder, stage: str, step: int) -> pa.Table:
        """Rollouts of a step, read once while they are looked at; in a thread."""
        key = (held.folder.run.metadata.uid, stage, step)
        with self._tables_lock:
            known = self._tables.get(key)
        if known is not None:
            return known
        table = held.folder.sample_table(stage, step)
        with self._tables_lock:
            self._tables[key] = table
            while len(self._tables) > _TABLES:
                self._tables.popitem(last=False)
        return table

    async def _open(self, run: DeepCoderRun) -> _Folder:
        endpoint = run.spec.checkpoint.s3.endpoint
        if endpoint and self._allowed and endpoint.rstrip("/") not in self._allowed:
            raise StorageError(f"checkpoint.s3.endpoint {endpoint} is not among the endpoints that the operator allows")
        held = self._folders.get(run.metadata.uid)
        if held is None or held.folder.run.spec.checkpoint != run.spec.checkpoint:
            loop = asyncio.get_running_loop()
            held = _Folder(await loop.run_in_executor(self._threads, self._client.folder, run))
            self._folders[run.metadata.uid] = held
            while len(self._folders) > _FOLDERS:
                self._folders.popitem(last=False)
        held.folder.run = run
        self._folders.move_to_end(run.metadata.uid)
        return held


def _steps(held: _Folder) -> list[StepRecord]:
    """All steps; of attempts whose metrics have not changed nothing is read again."""
    kept: dict[tuple[str, int], tuple[object, bytes]] = {}
    for stage, ordinal, stored in held.folder.metrics_objects():
        version = (stored.size, stored.modified)
        before = held.lines.get((stage, ordinal))
        if before is None or before[0] != version:
            text = "\n".join(held.folder.read_metrics(stage, ordinal))
            before = (version, zlib.compress(text.encode(), 1))
        kept[stage, ordinal] = before
    held.lines = kept
    return merge_steps(
        (ordinal, zlib.decompress(packed).decode().splitlines()) for (_, ordinal), (_, packed) in kept.items()
    )
