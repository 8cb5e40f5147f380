"""Metrics as an attempt stores them, while training goes on and over storage that is slow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepcoder_contracts.layout import METRICS, metrics_key
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.running.sinks import Sinks
from deepcoder_trainer.runtime_info import RuntimeInfo
from deepcoder_trainer.stopping import Stop


class SlowStore:
    """Reads what it is given, and takes its time over the first object."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.began, self.goes_on = threading.Event(), threading.Event()

    def put_file(self, key: str, path: Path) -> None:
        self.put_bytes(key, path.read_bytes())

    def put_bytes(self, key: str, data: bytes) -> None:
        if not self.began.is_set():
            self.began.set()
            assert self.goes_on.wait(60)
        self._store.put_bytes(key, data)


@pytest.fixture
def make_sinks(tmp_path: Path, make_config: Callable[..., StageConfig]) -> Callable[[Any], Sinks]:
    return lambda store: Sinks(make_config(), Stop(), store, tmp_path, RuntimeInfo())


def append(folder: Path, line: str) -> None:
    with (folder / METRICS).open("a") as file:
        file.write(line)


async def test_metrics_whose_upload_was_given_up_do_not_replace_newer_ones(
    tmp_path: Path, make_config: Callable[..., StageConfig], make_sinks: Callable[[Any], Sinks]
) -> None:
    config, store = make_config(), open_storage(f"file://{tmp_path}/store")
    slow = SlowStore(store)
    sinks = make_sinks(slow)
    append(tmp_path, "1\n")
    given_up = asyncio.create_task(sinks.keep())
    assert await asyncio.to_thread(slow.began.wait, 60)
    given_up.cancel()
    append(tmp_path, "2\n")
    newer = asyncio.create_task(sinks.keep())
    await asyncio.wait({newer}, timeout=0.5)  # it may have to wait for the first
    slow.goes_on.set()
    await newer
    await asyncio.get_running_loop().shutdown_default_executor()
    assert store.get_bytes(metrics_key(config.stage.name, config.ordinal)) == b"1\n2\n"


async def test_metrics_are_stored_though_training_goes_on_meanwhile(
    tmp_path: Path, make_sinks: Callable[[Any], Sinks], caplog: pytest.LogCaptureFixture
) -> None:
    sinks = make_sinks(open_storage(f"file://{tmp_path}/store"))
    append(tmp_path, "0\n")
    over = threading.Event()

    def train() -> None:
        while not over.is_set():
            append(tmp_path, "1\n")

    training = threading.Thread(target=train)
    training.start()
    try:
        for _ in range(20):
            await sinks.keep()
    finally:
        over.set()
        training.join()
    assert "could not be stored" not in caplog.text
