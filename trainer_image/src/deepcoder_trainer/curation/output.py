"""Writes the curated set: JSON Lines in our layout, and Parquet in the published schema.

The published training scripts read the Parquet file, and so does `deepcoder-trainer`. It has no columns for a problem's
own limits or comparison, nor for an id that is not `<source>-<split>-<number>`; only the JSON Lines have these. Both
files are written in one pass over the spool, under temporary names, and renamed when complete.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deepcoder_contracts.judge import Kind
from deepcoder_trainer.checkpoint.storage import file_sha256
from deepcoder_trainer.plain_arrow import pa, pq
from deepcoder_trainer.problems.record import Record

JSONL, PARQUET, SUMS = "problems.jsonl", "problems.parquet", "SHA256SUMS"
_GROUP_BYTES = 32 << 20
"""Size, in bytes of JSON Lines, from which on a row group is written."""

PUBLISHED = pa.schema(
    [
        pa.field("data_source", pa.string()),
        pa.field("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        pa.field("ability", pa.string()),
        pa.field("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        pa.field("extra_info", pa.struct([("split", pa.string()), ("index", pa.int64()), ("reference", pa.string())])),
    ]
)
"""Columns of the published training files."""


def own_row(record: Record, solution: str | None, noted: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record in our layout. `noted` is added to its metadata."""
    row: dict[str, Any] = {
        "id": record.id,
        "source": record.source,
        "prompt": record.prompt,
        "tests": [{"input": i, "output": o} for i, o in record.tests] if record.answer is None else None,
        "answer": record.answer,
        "kind": record.kind.value,
        "fn_name": record.fn_name,
        "time_limit_s": record.time_limit_s,
        "memory_limit_mb": record.memory_limit_mb,
        "scoring": record.scoring.value if record.scoring else None,
        "float_tolerance": record.float_tolerance,
        "solution": solution,
        "metadata": {**(record.metadata or {}), **noted, "place": record.place},
    }
    return {key: value for key, value in row.items() if value is not None}


def published_row(record: Record, split: str, index: int, solution: str | None) -> dict[str, Any]:
    """Return a record in the published schema."""
    return {
        "data_source": record.source,
        "prompt": [{"role": "user", "content": record.prompt}],
        "ability": "math" if record.answer is not None else "code",
        "reward_model": {"style": "rule", "ground_truth": ground_truth(record)},
        "extra_info": {"split": split, "index": index, "reference": solution},
    }


def ground_truth(record: Record) -> str:
    """Return the tests in the layout of their source, so that both the published reader and ours accept them."""
    if record.answer is not None:
        return record.answer
    if record.fn_name is None and record.source == "taco":
        return _text({"inputs": [i for i, _ in record.tests], "outputs": [o for _, o in record.tests]})
    if record.fn_name is not None and record.source in ("taco", "primeintellect"):
        with suppress(ValueError):  # tests that are not JSON are written unchanged
            return _called(record)
    kind = {"testtype": "functional" if record.fn_name else "stdin", "metadata": {"func_name": record.fn_name}}
    more = kind if record.fn_name or record.source == "livecodebench" else {}
    return _text([{"input": i, "output": o, **more} for i, o in record.tests])


def _called(record: Record) -> str:
    """Return arguments and return values as JSON values. Both readers expect a return value in a list of one."""
    inputs = [[json.loads(line) for line in i.split("\n")] if i else [] for i, _ in record.tests]
    outputs = [[json.loads(o)] for _, o in record.tests]
    if record.source == "taco":
        return _text({"inputs": inputs, "outputs": outputs, "fn_name": record.fn_name})
    return _text([{"input": i, "output": o, "fn_name": record.fn_name} for i, o in zip(inputs, outputs, strict=True)])


class Writer:
    """Writes both files. The published schema cannot hold scripts, so they are only in the JSON Lines."""

    def __init__(self, folder: Path, split: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._split = folder, split
        self._jsonl = _partial(folder / JSONL).open("wb")
        self._parquet = pq.ParquetWriter(_partial(folder / PARQUET), PUBLISHED, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._numbers: Counter[str] = Counter()
        self._used: set[tuple[str, int]] = set()
        self.written = 0
        self.left_out = 0
        """Number of problems that are only in the JSON Lines."""

    def add(self, record: Record, solution: str | None, noted: Mapping[str, Any]) -> None:
        """Write one problem."""
        line = _line(own_row(record, solution, noted)).encode()
        self._jsonl.write(line + b"\n")
        self.written += 1
        if record.kind is Kind.SCRIPT:
            self.left_out += 1
            return
        self._rows.append(published_row(record, self._split, self._index(record), solution))
        self._bytes += len(line)
        if self._bytes >= _GROUP_BYTES:
            self._write_group()

    def commit(self) -> dict[str, str]:
        """Finish both files and rename them to their final names. Return their SHA-256 by name."""
        self._write_group()
        self._jsonl.close()
        self._parquet.close()
        for name in (JSONL, PARQUET):
            _partial(self._folder / name).replace(self._folder / name)
        return {name: file_sha256(self._folder / name) for name in (JSONL, PARQUET)}

    def discard(self) -> None:
        """Remove the temporary files."""
        self._jsonl.close()
        self._parquet.close()
        for name in (JSONL, PARQUET):
            _partial(self._folder / name).unlink(missing_ok=True)

    def _index(self, record: Record) -> int:
        """Return the number in the record's id if the id has the published form, otherwise the next free number."""
        found = re.fullmatch(rf"{re.escape(record.source)}-{re.escape(self._split)}-(0|[1-9]\d{{0,17}})", record.id)
        index = int(found[1]) if found else self._numbers[record.source]
        while (record.source, index) in self._used:
            index += 1
        self._used.add((record.source, index))
        if not found:
            self._numbers[record.source] = index + 1
        return index

    def _write_group(self) -> None:
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=PUBLISHED))
        self._rows, self._bytes = [], 0


@contextmanager
def writing(folder: Path, split: str) -> Iterator[Writer]:
    """Yield a Writer. After an error, its files are removed."""
    writer = Writer(folder, split)
    try:
        yield writer
    except BaseException:
        writer.discard()
        raise


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write SHA256SUMS in the format of `sha256sum --check`. It is written last: with it, the set is complete."""
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    partial = _partial(folder / SUMS)
    partial.write_text(text)
    partial.replace(folder / SUMS)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _line(row: Mapping[str, Any]) -> str:
    """Return the row's JSON. A value of its metadata that is no number (pandas' mark of an empty field) is null."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:  # only Python and few others read NaN, which is no JSON
        return _text(json.loads(json.dumps(row), parse_constant=lambda _: None))


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
