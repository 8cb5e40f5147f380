"""Reads what runs have stored, for the page.

Queries run in a bounded number of threads (`storage_threads`), on folders that are opened with the runs' own
credentials (`run_folders`). Steps, rollouts and links of chains are cached (`curves`, `rollouts`, `chains`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from deepcoder_client.connection import Connection
from deepcoder_client.run_folder import RunFolder
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_web import views
from deepcoder_web.chains import Chains
from deepcoder_web.curves import Curves
from deepcoder_web.rollouts import Rollouts
from deepcoder_web.run_folders import RunFolders
from deepcoder_web.storage_threads import Budget, StorageThreads

_AT_ONCE_BYTES = 320 << 20
"""Largest number of bytes that are read and unpacked at once. Together with the caches, this is below the chart's
memory limit."""

T = TypeVar("T")


class Storage:
    """Answers the page's queries from the runs' buckets."""

    def __init__(self, connection: Connection, allowed_endpoints: Sequence[str]) -> None:
        self._threads, self._folders = StorageThreads(), RunFolders(connection, allowed_endpoints)
        budget = Budget(_AT_ONCE_BYTES)
        self._curves, self._rollouts, self._chains = Curves(budget), Rollouts(budget), Chains()

    async def attempts(self, run: DeepCoderRun) -> dict[str, Any]:
        """Return the attempts and how they ended."""
        return {"attempts": await self._ask(run, lambda folder: views.attempt_rows(run, folder.attempts()))}

    async def steps(self, run: DeepCoderRun, after: str) -> dict[str, Any]:
        """Return the steps after a cursor, as columns."""
        return await self._ask(run, lambda folder: self._curves.steps(folder).document(after))

    async def sample_steps(self, run: DeepCoderRun) -> dict[str, Any]:
        """Return the steps for which rollouts are stored."""

        def ask(folder: RunFolder) -> dict[str, Any]:
            return {"steps": [{"stage": stage, "step": step} for stage, step in folder.sample_steps()]}

        return await self._ask(run, ask)

    async def samples(
        self, run: DeepCoderRun, stage: str, step: int, verdict: str, order: str, offset: int
    ) -> dict[str, Any]:
        """Return a page of the rollouts of a step, without their texts."""
        return await self._ask(
            run, lambda folder: views.sample_rows(self._rollouts.rows(folder, stage, step), verdict, order, offset)
        )

    async def sample(
        self, run: DeepCoderRun, stage: str, step: int, place: tuple[int, int], draw: int | None
    ) -> dict[str, Any] | None:
        """Return one rollout by group and index, or None. See `Rollouts.one`."""

        def ask(folder: RunFolder) -> dict[str, Any] | None:
            row = self._rollouts.one(folder, stage, step, place, draw)
            return views.sample_page(row) if row else None

        return await self._ask(run, ask)

    async def lineage(self, run: DeepCoderRun) -> dict[str, Any]:
        """Return the chain from the newest checkpoint towards the base model, each link verified. See `Chains.walk`."""
        if run.status.latest_checkpoint is None:
            return {"nodes": [], "problem": None, "unfinished": False, "checked": None}
        return await self._ask(run, self._chains.walk)

    async def evaluations(self, run: DeepCoderRun) -> dict[str, Any]:
        """Return the committed evaluations, and which cannot be read."""

        def ask(folder: RunFolder) -> dict[str, Any]:
            damaged: list[str] = []
            return views.evaluations_document(folder.evaluations(damaged)) | {"damaged": damaged}

        return await self._ask(run, ask)

    async def _ask(self, run: DeepCoderRun, question: Callable[[RunFolder], T]) -> T:
        about = run.metadata
        return await self._threads.ask(about.namespace, about.uid, lambda: self._folders.ask(run, question))
