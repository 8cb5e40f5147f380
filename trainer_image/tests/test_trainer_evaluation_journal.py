"""What an evaluation keeps under way: no line is lost in a healthy process, and what was kept is read or asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_world import broken_judge, make_context

from deepcoder_trainer.checkpoint import transfer
from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.evaluation import journal as journal_module
from deepcoder_trainer.evaluation.answers import Answer
from deepcoder_trainer.evaluation.journal import Journal
from deepcoder_trainer.evaluation.run import run_evaluate_stage
from deepcoder_trainer.protocols import SandboxUnavailable


class _Encoding:
    """json, but for what happens in another thread while a line is encoded."""

    loads = staticmethod(json.loads)

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile

    def dumps(self, value: Any) -> str:
        self.meanwhile()
        return json.dumps(value)


@pytest.mark.parametrize("away", [False, True], ids=["put", "not put"])
async def test_a_line_that_is_added_while_a_part_is_put_is_in_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    store = open_storage(f"file://{tmp_path}")
    journal = Journal(store, "parts", 60)
    journal.answered((0, 0), Answer("first", "stop", 1))
    with monkeypatch.context() as meanwhile:
        if away:
            meanwhile.setattr(store, "put_bytes", lambda *_: (_ for _ in ()).throw(StorageUnavailable("dead")))
        meanwhile.setattr(journal_module, "json", _Encoding(journal._put))
        journal.answered((0, 1), Answer("second", "stop", 1))
    await journal.flush()
    read = Journal(store, "parts")
    await read.load()
    assert {place: known.answer.text for place, known in read.known.items()} == {(0, 0): "first", (0, 1): "second"}


async def stopped(tmp_path: Path) -> None:
    """An evaluation of which every answer is kept, and no verdict."""
    with pytest.raises(SandboxUnavailable):
        await run_evaluate_stage(make_context(tmp_path, ["Base"], broken_judge, problems=4))


@pytest.mark.parametrize("method", ["list", "get_bytes"])
async def test_one_storage_error_as_an_evaluation_goes_on_costs_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    await stopped(tmp_path)
    monkeypatch.setattr(transfer, "_BACKOFF_SECONDS", 0.0)
    again = make_context(tmp_path, ["Base"], problems=4)
    failing(again.store, method, monkeypatch, times=1)
    await run_evaluate_stage(again)
    assert again.sampler.asked == []  # type: ignore[attr-defined]


async def test_storage_that_stays_away_ends_the_evaluation_instead_of_sampling_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stopped(tmp_path)
    monkeypatch.setattr(transfer, "_BACKOFF_SECONDS", 0.0)
    again = make_context(tmp_path, ["Base"], problems=4)
    failing(again.store, "get_bytes", monkeypatch, times=100)
    with pytest.raises(StorageUnavailable):
        await run_evaluate_stage(again)
    assert again.sampler.asked == []  # type: ignore[attr-defined]


def failing(store: Any, method: str, monkeypatch: pytest.MonkeyPatch, *, times: int) -> None:
    """The first so many calls that ask for kept samples get no answer."""
    real, left = getattr(store, method), [None] * times

    def call(key: str) -> Any:
        if "/parts/" in key and left:
            left.pop()
            raise StorageUnavailable("the line is dead")
        return real(key)

    monkeypatch.setattr(store, method, call)
