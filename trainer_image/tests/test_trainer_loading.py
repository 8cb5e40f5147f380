"""Garbage is not looked for while torch is loaded, and is again afterwards, but not in what was loaded."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator

import pytest

from deepcoder_trainer.heavy_imports import heavy_imports
from deepcoder_trainer.learner.actor import LearnerActor


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    yield
    gc.enable()


def test_nothing_is_collected_meanwhile_and_it_is_as_before_whatever_happens() -> None:
    with heavy_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), heavy_imports():
        importlib.import_module("deepcoder_trainer.nothing")
    assert gc.isenabled()
    gc.disable()
    with heavy_imports():
        pass
    assert not gc.isenabled()


def test_what_was_loaded_is_not_looked_through_afterwards() -> None:
    with heavy_imports():
        made = [object()]
    assert all(each is not made for each in gc.get_objects())
    later = [object()]
    assert any(each is later for each in gc.get_objects())


def test_a_rank_loads_torch_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []

    class Imports:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "deepcoder_trainer.learner.files":
                found.append(gc.isenabled())
                raise RuntimeError("seen")

    monkeypatch.delitem(sys.modules, "deepcoder_trainer.learner.files", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Imports(), *sys.meta_path])
    with pytest.raises(RuntimeError, match="seen"):
        LearnerActor.start(object.__new__(LearnerActor), 0, None)
    assert found == [False]
    assert gc.isenabled()
