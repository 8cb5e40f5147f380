"""A transfer that moves is waited for, however slow. One that hangs is storage's failure if its rank lives."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepcoder_contracts.manifest import FileEntry
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, StorageUnavailable
from deepcoder_trainer.checkpoint.storage_file import FileStore
from deepcoder_trainer.checkpoint.transfer import download_files
from deepcoder_trainer.errors import LearnerLost
from deepcoder_trainer.learner import group
from deepcoder_trainer.learner.answers import Movement
from deepcoder_trainer.learner.group import Deadlines, RayLearner
from deepcoder_trainer.thread_stacks import ThreadStacks

PREFIX = "short/step-000001.a001"


class Rank:
    """Its transfers end when the test says so; `moved` is what it answers, None for no answer."""

    def __init__(self, moved: Callable[[], int | None]) -> None:
        self.may_end = asyncio.Event()
        self.saved: list[str] = []
        self.answer = moved
        self.looks = 0
        for name in ("save", "upload", "download", "moved", "where"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    async def _save(self, directory: str) -> None:
        self.saved.append(directory)

    async def _upload(self, *_: Any) -> list[FileEntry]:
        await self.may_end.wait()
        return []

    async def _download(self, *_: Any) -> None:
        await self.may_end.wait()

    async def _moved(self) -> int:
        self.looks += 1
        if self.looks == 20:
            self.may_end.set()
        if (answer := self.answer()) is None:
            await asyncio.Event().wait()
        assert answer is not None
        return answer

    async def _where(self) -> ThreadStacks:
        return ThreadStacks((), "")


def learner_of(config: StageConfig, *ranks: Rank) -> RayLearner:
    return RayLearner(ranks, config.recipe, 64, Deadlines(transfer=0.08, where=0.01))


@pytest.mark.parametrize("way", ["upload", "download"])
async def test_a_transfer_that_moves_may_take_longer_than_any_time(way: str, make_config: Callable[..., Any]) -> None:
    config = make_config(learners=1)
    learner = learner_of(config, rank := Rank(itertools.count().__next__))
    moving: Awaitable[object] = (
        learner.upload("/saved", config.storage, PREFIX)
        if way == "upload"
        else learner.download("/saved", config.storage, PREFIX, None)  # type: ignore[arg-type]
    )
    await moving
    assert rank.looks == 20, "five times as long as nothing may be moved"


async def test_an_upload_that_hangs_is_storages_failure_and_nothing_is_saved_until_it_has_ended(
    make_config: Callable[..., Any],
) -> None:
    config = make_config(learners=2)
    hanging = Rank(lambda: 7)
    learner = learner_of(config, done := Rank(lambda: 7), hanging)
    done.may_end.set()
    words = rf"learner rank 1 moved nothing for 0.08 s \(upload to {config.storage.uri}/{PREFIX}\).*bucket's server"
    with pytest.raises(StorageUnavailable, match=words):
        await learner.upload("/saved", config.storage, PREFIX)
    await learner.save("/saved")
    with pytest.raises(StorageUnavailable, match="is not saved: the upload before it hangs"):
        await learner.upload("/saved", config.storage, PREFIX)
    assert hanging.saved == [], "its upload would remove the files of the new save"
    hanging.may_end.set()
    for _ in range(10):
        await asyncio.sleep(0)
    await learner.save("/saved")
    assert await learner.upload("/saved", config.storage, PREFIX) == []
    assert hanging.saved == ["/saved"]


async def test_a_rank_that_moves_nothing_and_does_not_say_so_is_lost(make_config: Callable[..., Any]) -> None:
    config = make_config(learners=1)
    with pytest.raises(LearnerLost, match=r"learner rank 0 moved nothing for 0\.08 s"):
        await learner_of(config, Rank(lambda: None)).upload("/saved", config.storage, PREFIX)


def test_only_ranks_at_work_are_idle_and_only_since_they_last_moved() -> None:
    movement = Movement(3, 0.0)
    movement.look({0: 5, 1: 5, 2: None}, 10.0)
    movement.look({0: 6, 1: 5}, 20.0)
    assert movement.idle([0, 1, 2], 25.0, 15.0) == [1, 2]
    assert movement.idle([0], 34.0, 15.0) == []
    assert movement.idle([0], 35.0, 15.0) == [0]


def test_a_longer_stall_bound_lengthens_all_waits_for_ranks_and_a_shorter_one_only_training() -> None:
    default, longer, shorter = Deadlines(), Deadlines.of(7200), Deadlines.of(600)
    assert (longer.start, longer.train, longer.transfer, longer.state) == (7200, 7200, 7200, 3600)
    assert shorter == replace(default, train=600)


def test_a_rank_is_looked_at_more_than_once_before_it_counts_as_idle() -> None:
    assert Deadlines().transfer > 2 * group.LOOK_SECONDS


def entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def test_ranks_of_one_machine_download_their_own_files_at_the_same_time_and_a_shared_one_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, folder = FileStore(tmp_path / "store"), tmp_path / "resume"
    for name in ("shared", "rank-0", "rank-1"):
        store.put_bytes(f"p/{name}", name.encode())
    together, fetched = threading.Barrier(2), []
    get = FileStore.get_file

    def get_file(self: FileStore, key: str, path: Path) -> str:
        fetched.append(key)
        if key != "p/shared":
            together.wait(10)
        return get(self, key, path)

    monkeypatch.setattr(FileStore, "get_file", get_file)

    def rank(number: int) -> None:
        own = f"rank-{number}"
        for name in ("shared", own):
            download_files(store, "p", folder, [entry(name, name.encode())])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(rank, range(2)))
    assert sorted(fetched) == ["p/rank-0", "p/rank-1", "p/shared"]
    assert sorted(p.name for p in folder.iterdir()) == ["rank-0", "rank-1", "shared"], "no lock is left behind"


def test_a_file_that_failed_for_one_is_fetched_by_the_next(tmp_path: Path) -> None:
    store, folder = FileStore(tmp_path / "store"), tmp_path / "resume"
    store.put_bytes("p/shared", b"other")
    with pytest.raises(CheckpointDamaged):
        download_files(store, "p", folder, [entry("shared", b"whole")])
    store.put_bytes("p/shared", b"whole")
    download_files(store, "p", folder, [entry("shared", b"whole")])
    assert [p.name for p in folder.iterdir()] == ["shared"]
