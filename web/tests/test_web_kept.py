"""What is kept of buckets between one look and the next: always what is stored now, and never more than fits."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from web_fakes import run_of

from deepcoder_client.errors import StorageError, StorageFault
from deepcoder_client.storage import Stored
from deepcoder_web import curves, rollouts
from deepcoder_web.curves import Curves
from deepcoder_web.rollouts import Rollouts
from deepcoder_web.storage_threads import Budget

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Folder:
    """Metrics by attempt and one step's rollouts, and how often each was read."""

    def __init__(self, name: str = "demo") -> None:
        self.run = run_of(name)
        self.metrics: dict[int, str] = {}
        self.samples, self.etag = b"", "a"
        self.reads: list[object] = []

    def metrics_objects(self) -> list[tuple[str, int, Stored]]:
        return [("short", n, Stored(str(n), len(text), NOON)) for n, text in self.metrics.items()]

    def read_metrics(self, stage: str, ordinal: int) -> list[str]:
        self.reads.append(ordinal)
        return self.metrics[ordinal].splitlines()

    def samples_object(self, stage: str, step: int) -> Stored:
        return Stored("key", len(self.samples), NOON, etag=self.etag)

    def read_samples(self, stage: str, step: int) -> bytes:
        self.reads.append(self.etag)
        return self.samples


def lines(first: int, last: int, metrics: int = 3) -> str:
    values = {f"metric_{number}": 0.123456789 for number in range(metrics)}
    about = {"stage": "short", "metrics": values, "verdicts": {"passed": 3}, "phase_seconds": {"train": 2.0}}
    return "\n".join(json.dumps({**about, "step": step, "time": 1000.0 + step}) for step in range(first, last + 1))


def folder_of(metrics: dict[int, str] | None = None, name: str = "demo") -> Any:
    folder = Folder(name)
    folder.metrics = metrics or {}
    return folder


def test_ten_thousand_steps_are_parsed_once_for_all_who_look(monkeypatch: pytest.MonkeyPatch) -> None:
    merged: list[int] = []
    merge = curves.merge_steps
    monkeypatch.setattr(curves, "merge_steps", lambda attempts: merged.append(1) or merge(attempts))
    folder, kept = folder_of({1: lines(1, 10_000)}), Curves(Budget(1 << 30))
    first = kept.steps(folder).document()
    assert len(first["step"]) == 10_000
    for _ in range(12):
        again = kept.steps(folder).document(first["cursor"])
        assert (again["reset"], again["step"]) == (False, [])
    assert (folder.reads, len(merged)) == ([1], 1)


def test_what_an_attempt_has_stored_since_is_read_and_nothing_else() -> None:
    folder, kept = folder_of({1: lines(1, 5), 2: lines(6, 6)}), Curves(Budget(1 << 30))
    first = kept.steps(folder).document()
    folder.metrics[2] = lines(6, 8)
    again = kept.steps(folder).document(first["cursor"])
    assert (again["reset"], again["step"]) == (False, [7, 8])
    assert folder.reads == [1, 2, 2]


def test_runs_that_nobody_looked_at_for_longest_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    text = lines(1, 10)
    monkeypatch.setattr(curves, "_KEPT_BYTES", 2 * len(text))
    kept = Curves(Budget(1 << 30))
    folders = [folder_of({1: text}, name) for name in "abc"]
    for folder in (folders[0], folders[1], folders[0], folders[2], folders[0], folders[1]):
        kept.steps(folder)
    assert [len(folder.reads) for folder in folders] == [1, 2, 1]


def test_metrics_that_would_not_fit_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "_MOST_BYTES", 1000)
    folder = folder_of({1: lines(1, 100)})
    with pytest.raises(StorageError) as refusal:
        Curves(Budget(1 << 30)).steps(folder)
    assert (refusal.value.fault, folder.reads) == (StorageFault.TOO_LARGE, [])


def test_many_short_figures_are_refused_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "_MOST_FIGURES", 1000)
    with pytest.raises(StorageError) as refusal:
        Curves(Budget(1 << 30)).steps(folder_of({1: lines(1, 1, metrics=1001)}))
    assert refusal.value.fault is StorageFault.TOO_LARGE


def row(group: int, index: int, draw: int, response: str, verdict: str = "passed") -> dict[str, Any]:
    place = {"group_id": group, "index": index, "draw": draw, "problem_id": f"p{group}", "dropped": draw == 0}
    return place | {"prompt": "p", "response": response, "reward": 1.0, "verdict": verdict, "response_tokens": 5}


def packed(*rows: dict[str, Any], compression: str = "zstd") -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), out, compression=compression)
    return out.getvalue()


def test_rollouts_of_a_step_that_is_trained_again_are_read_anew() -> None:
    folder, kept = folder_of(), Rollouts(Budget(1 << 30))
    folder.samples = packed(row(0, 0, 0, "lost"))
    for _ in range(2):
        found = kept.one(folder, "short", 3, (0, 0), None)
        assert found is not None
        assert found["response"] == "lost"
    folder.samples, folder.etag = packed(row(0, 0, 0, "kept")), "b"
    found = kept.one(folder, "short", 3, (0, 0), None)
    assert found is not None
    assert found["response"] == "kept"
    assert folder.reads == ["a", "b"]


def test_each_draw_is_found_and_the_last_where_none_is_named() -> None:
    folder, kept = folder_of(), Rollouts(Budget(1 << 30))
    many = [row(1, number, 0, "other") for number in range(100)]
    folder.samples = packed(row(0, 0, 0, "dropped", "wrong_answer"), *many, row(0, 0, 1, "trained on"))
    responses = {}
    for draw in (None, 0, 1, 2):
        found = kept.one(folder, "short", 3, (0, 0), draw)
        responses[draw] = found and found["response"]
    assert responses == {None: "trained on", 0: "dropped", 1: "trained on", 2: None}
    rows = kept.rows(folder, "short", 3)
    assert len(rows) == 102
    assert not {"prompt", "response"} & set(rows[0])


def test_texts_that_unpack_to_more_than_fits_are_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, kept = folder_of(), Rollouts(Budget(1 << 30))
    folder.samples = packed(row(0, 0, 0, "x" * (4 << 20)))
    assert len(folder.samples) < 100_000
    monkeypatch.setattr(rollouts, "_MOST_TEXT_BYTES", 1 << 20)
    assert kept.rows(folder, "short", 3)[0]["verdict"] == "passed", "the list needs no texts"
    with pytest.raises(StorageError) as refusal:
        kept.one(folder, "short", 3, (0, 0), None)
    assert refusal.value.fault is StorageFault.TOO_LARGE


@pytest.mark.parametrize("what", ["word", "rows", "columns"])
def test_a_list_that_would_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    folder, kept = folder_of(), Rollouts(Budget(1 << 30))
    folder.samples = packed(*(row(0, number, 0, "x", "v" * (5000 if what == "word" else 5)) for number in range(200)))
    if what == "rows":
        monkeypatch.setattr(rollouts, "_MOST_ROWS", 100)
    if what == "columns":
        monkeypatch.setattr(rollouts, "_MOST_BYTES", 1000)
    with pytest.raises(StorageError) as refusal:
        kept.rows(folder, "short", 3)
    assert refusal.value.fault is StorageFault.TOO_LARGE


def test_what_is_no_parquet_is_said_to_be_none() -> None:
    folder = folder_of()
    folder.samples = b"no table"
    with pytest.raises(StorageError, match="step 3 cannot be read"):
        Rollouts(Budget(1 << 30)).rows(folder, "short", 3)


def test_kept_rollouts_are_bounded_and_those_looked_at_last_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, folders = Rollouts(Budget(1 << 30)), [folder_of(name=name) for name in "abc"]
    for folder in folders:
        folder.samples = packed(row(0, 0, 0, "x"))
    monkeypatch.setattr(rollouts, "_KEPT_BYTES", 2 * len(folders[0].samples))
    for folder in (folders[0], folders[1], folders[0], folders[2], folders[0], folders[1]):
        kept.rows(folder, "short", 3)
    assert [len(folder.reads) for folder in folders] == [1, 2, 1]
