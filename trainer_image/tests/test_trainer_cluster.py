"""The object store of a cluster that is started by hand: large enough for the model, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepcoder_trainer import cluster
from deepcoder_trainer.cluster import OBJECT_STORE_BYTES, object_store_bytes
from deepcoder_trainer.errors import BadConfig

GIB = 1 << 30


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    usage = SimpleNamespace(free=64 * GIB)
    monkeypatch.setattr(cluster, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    return usage


def test_it_holds_the_weights_that_are_loaded_and_those_that_come_next(free: SimpleNamespace) -> None:
    assert object_store_bytes(3.6e9) == 9e9
    assert object_store_bytes(1e6) == OBJECT_STORE_BYTES


def test_shared_memory_bounds_it_as_long_as_one_set_has_room(free: SimpleNamespace) -> None:
    free.free = 6 * GIB
    assert 1.25 * 3.6e9 < object_store_bytes(3.6e9) < free.free


def test_too_little_shared_memory_is_refused_with_how_much_is_needed(free: SimpleNamespace) -> None:
    free.free = 64 << 20  # what a container has by default
    with pytest.raises(BadConfig, match=r"weights of 3\.6 GB .* make it at least 5\.0 GB") as refused:
        object_store_bytes(3.6e9)
    assert refused.value.field == "model.uri"
    assert object_store_bytes(1e6) < free.free, "a small model does with little"
