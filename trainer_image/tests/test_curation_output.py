"""Files in and out: rows are read within bounds, and what is written is read back as the same problems."""

from __future__ import annotations

import datetime
import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curation_world import (
    codeforces_row,
    livecodebench_function_row,
    livecodebench_row,
    own_row,
    packed,
    synthetic_row,
    taco_function_row,
    taco_row,
    write_jsonl,
)

from deepcoder_trainer.curation.output import JSONL, PARQUET, PUBLISHED, ground_truth, writing
from deepcoder_trainer.problems import files, json_text
from deepcoder_trainer.problems.dataset import load_dataset
from deepcoder_trainer.problems.files import DatasetError, data_files, read_rows
from deepcoder_trainer.problems.readers import reader_for
from deepcoder_trainer.problems.record import Record
from deepcoder_trainer.problems.rows import RowError


def records() -> list[Record]:
    synthetic_function = synthetic_row(
        prompt="Write f.",
        verification_info=json.dumps(
            {
                "language": "python",
                "test_cases": [{"input": [[n], "a"], "output": [[n, n]], "fn_name": "f"} for n in range(6)],
            }
        ),
    )
    rows = [
        ("t", taco_row()),
        ("t", taco_function_row()),
        ("p", synthetic_row()),
        ("p", synthetic_function),
        ("l", livecodebench_row()),
        ("l", livecodebench_function_row()),
        ("codeforces", codeforces_row()),
        ("m", own_row()),
        (
            "m",
            own_row(id="mine-train-0", kind="function", fn_name="f", tests=[{"input": '"a"\n[1]', "output": "[[2]]"}]),
        ),
    ]
    counts: dict[str, int] = {}
    made = []
    for name, row in rows:
        record = reader_for(row)[1](row, name)
        made.append(record.at(f"{name}:1", counts.setdefault(record.source, 0), "train"))
        counts[record.source] += 1
    return made


def test_both_files_hold_the_same_problems(tmp_path: Path) -> None:
    with writing(tmp_path, "train") as writer:
        for record in records():
            writer.add(record, record.solutions[0] if record.solutions else None, {"verified": True})
        sums = writer.commit()
    assert sorted(p.name for p in tmp_path.iterdir()) == [JSONL, PARQUET]
    own, published = load_dataset(tmp_path / JSONL).problems, load_dataset(tmp_path / PARQUET).problems
    assert load_dataset(tmp_path / JSONL).digest == f"sha256:{sums[JSONL]}"
    assert load_dataset(tmp_path / PARQUET).digest == f"sha256:{sums[PARQUET]}"
    assert len(own) == len(published) == 9
    for one, two in zip(own, published, strict=True):
        assert one.tests == two.tests
        assert (one.source, one.prompt, one.kind, one.fn_name, one.scoring, one.time_limit_s) == (
            two.source,
            two.prompt,
            two.kind,
            two.fn_name,
            two.scoring,
            two.time_limit_s,
        )
    assert [p.id for p in own[:7]] == [p.id for p in published[:7]]
    assert len({p.id for p in published}) == 9, "numbers of ids that are not of the published form are free ones"
    assert pq.read_schema(tmp_path / PARQUET).equals(PUBLISHED)
    row = json.loads((tmp_path / JSONL).read_text().splitlines()[0])
    assert row["metadata"] == {
        "difficulty": "EASY",
        "url": "https://example.invalid/1/A",
        "verified": True,
        "place": "t:1",
    }


def test_tests_are_written_as_their_source_publishes_them() -> None:
    truths = [json.loads(ground_truth(r)) for r in records()]
    assert truths[0].keys() == {"inputs", "outputs"}
    assert truths[1]["fn_name"] == "double"
    assert (truths[1]["inputs"][3], truths[1]["outputs"][3]) == ([3], [6])
    assert truths[2][0] == {"input": "1\n", "output": "1\n"}
    assert truths[3][1] == {"input": [[1], "a"], "output": [[1, 1]], "fn_name": "f"}
    assert truths[4][0] == {"input": "3\n", "output": "cba\n", "testtype": "stdin", "metadata": {"func_name": None}}
    assert truths[5][0]["metadata"] == {"func_name": "repeat"}


def test_a_script_is_in_our_file_alone(tmp_path: Path) -> None:
    script = Record(source="s", id="s-1", prompt="p", statement="p", tests=(("assert True", ""),), kind="script")  # type: ignore[arg-type]
    script = Record.of_line(script.line())
    with writing(tmp_path, "train") as writer:
        writer.add(script, None, {})
        writer.commit()
        assert (writer.written, writer.left_out) == (1, 1)
    assert load_dataset(tmp_path / JSONL).problems[0].id == "s-1"
    assert pq.read_metadata(tmp_path / PARQUET).num_rows == 0


def test_what_is_not_finished_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted() -> None:
        with writing(tmp_path, "train") as writer:
            writer.add(records()[0], None, {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


# --- reading


def test_an_array_of_objects_is_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": n, "text": "é" * n} for n in range(40)]
    for text in (json.dumps(rows), json.dumps(rows, indent=3, ensure_ascii=False)):
        path = tmp_path / "a.json"
        path.write_text(text)
        for chunk in (1, 7, 1 << 20):
            monkeypatch.setattr(files, "_CHUNK", chunk)
            read = list(read_rows(path))
            assert [r.fields for r in read] == rows
            assert [r.number for r in read] == list(range(1, 41))
            assert 0.0 <= read[0].done <= read[-1].done <= 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}', r"a\.json:2: not JSON"),
        ('[{"a": 1}, 7]', r"a\.json:2: a int"),
        ('[{"a": ' + "[" * 100_000, r"a\.json:1: not JSON"),
        ("", r"a\.json:1: not JSON"),
        ("[" + '{"a": ' + "9" * 5000 + "}]", r"a\.json:1: not JSON"),
    ],
)
def test_a_bad_array_is_named_by_row(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        list(read_rows(tmp_path / "a.json"))


def test_an_empty_array_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(" [ ]\n")
    assert list(read_rows(tmp_path / "a.json")) == []


def test_a_compressed_bomb_is_stopped_at_the_largest_row_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 1 << 20)
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(b" " * (64 << 20)))
    with pytest.raises(DatasetError, match=r"bomb\.jsonl\.gz:1: a row of more than 1 MiB"):
        list(read_rows(bomb))
    monkeypatch.setattr(files, "MAX_EXPANDED_BYTES", 1 << 30)
    bomb.write_bytes(gzip.compress((b" " * 1023 + b"\n") * 4096))
    assert list(read_rows(bomb)) == []
    monkeypatch.setattr(files, "MAX_EXPANDED_BYTES", 1 << 20)
    with pytest.raises(DatasetError, match="expands to more than"):
        list(read_rows(bomb))


def test_a_parquet_file_whose_rows_expand_too_far_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"question": ["?", "x" * (4 << 20)] * 8}), path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 1 << 20)
    with pytest.raises(DatasetError, match=r"bomb\.parquet:1: a row of more than 1 MiB"):
        list(read_rows(path))


def test_what_a_dictionary_repeats_is_expanded_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "x" * (4 << 20)
    path = tmp_path / "repeated.parquet"
    pq.write_table(pa.table({"question": [long] * 32}), path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 1 << 20)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(DatasetError, match=r"repeated\.parquet:1: a row of more than 1 MiB"):
            list(read_rows(path))
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 48 << 20, "sixteen rows alone would be 64 MiB"


def test_a_group_of_large_rows_that_repeat_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [f"{n % 3}" + "x" * (900 << 10) for n in range(40)]
    path = tmp_path / "large.parquet"
    pq.write_table(pa.table({"question": values}), path, compression="zstd", row_group_size=20)
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 1 << 20)
    read = list(read_rows(path))
    assert [r.fields["question"] for r in read] == values
    assert [r.number for r in read] == list(range(1, 41))


def test_a_row_of_more_values_than_are_read_is_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_text, "MAX_VALUES", 1000)
    monkeypatch.setattr(files, "_CHUNK", 256)
    many: list[Any] = [[] for _ in range(600)]
    for name, text in (("lines.jsonl", json.dumps({"id": many})), ("array.json", json.dumps([{"id": many}]))):
        (tmp_path / name).write_text(text)
        with pytest.raises(DatasetError, match=rf"{name}:1: more than 1,000 values in one row: split its tests"):
            list(read_rows(tmp_path / name))
    for field, row in (
        ("input_output", taco_row(input_output=json.dumps(many))),
        ("verification_info", synthetic_row(verification_info=json.dumps(many))),
        ("private_test_cases", livecodebench_row(private_test_cases=packed(many))),
    ):
        with pytest.raises(RowError, match=rf"{field}: .*more than 1,000 values"):
            reader_for(row)[1](row, "set")
    write_jsonl(tmp_path / "long.jsonl", [own_row(prompt="words, " * 900 + "long")])
    assert len(list(read_rows(tmp_path / "long.jsonl"))) == 1, "a long text is no such row"


def test_archives_are_told_and_never_unpacked(tmp_path: Path) -> None:
    (tmp_path / "bomb.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"use one of .*; archives are never unpacked"):
        data_files(tmp_path / "bomb.zip")


def test_json_beside_data_describes_it(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "train.jsonl", [own_row()])
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert [p.id for p in load_dataset(tmp_path).problems] == ["mine-1"]
    (tmp_path / "data" / "train.jsonl").rename(tmp_path / "old")
    (tmp_path / "dataset_infos.json").write_text(json.dumps([own_row(id="array")]))
    assert [p.id for p in load_dataset(tmp_path).problems] == ["array"]


def test_parquet_in_any_layout_is_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [taco_row(), taco_function_row(solutions=["x"])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = [reader_for(r.fields)[1](r.fields, "t") for r in read_rows(tmp_path / "a.parquet")]
    assert [r.fn_name for r in read] == [None, "double"]


def test_metadata_that_json_does_not_have_is_text_or_nothing_in_what_is_written(tmp_path: Path) -> None:
    """A Parquet file that pandas wrote has dates, and NaN for what is not known."""
    day = datetime.datetime(2024, 7, 26, 12, 30)
    row = own_row(metadata={"day": day, "packed": b"1", "rating": math.nan, "difficulty": "größer"})
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (read,) = (reader_for(r.fields)[1](r.fields, "t") for r in read_rows(tmp_path / "a.parquet"))
    with writing(tmp_path, "train") as writer:
        writer.add(Record.of_line(read.line()), None, {})
        writer.commit()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    metadata = json.loads((tmp_path / JSONL).read_text(), parse_constant=refuse)["metadata"]
    assert metadata == {
        "day": "2024-07-26 12:30:00",
        "packed": "b'1'",
        "rating": None,
        "difficulty": "größer",
        "place": "",
    }


def test_tests_that_are_bytes_are_not_taken_for_what_python_prints_of_them(tmp_path: Path) -> None:
    row = {"problem": "Add.", "data_source": "taco", "tests": [{"input": b"1 2", "output": b"3"}]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=r"a\.parquet:1: tests: a bytes is no text"):
        load_dataset(tmp_path / "a.parquet")


def test_a_date_that_python_does_not_have_is_named_by_its_row(tmp_path: Path) -> None:
    days = pa.array([0, 1 << 30], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"id": ["a", "b"], "prompt": ["p", "p"], "published": days}), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=r"a\.parquet:1: cannot be read \(days="):
        list(read_rows(tmp_path / "a.parquet"))
