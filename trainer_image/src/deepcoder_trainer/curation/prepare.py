"""The part of curation before the judge: reads all inputs, applies filters that run no program, finds duplicates.

It makes one pass, row by row. Of each remaining record only a Candidate stays in memory; the record goes to the spool.
Evaluation sets are read first, so that contamination can be checked row by row. Nothing is kept between runs: this
takes a minute for the published sets, and the journal keeps the verdicts, which take hours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepcoder_contracts.curation import Layout
from deepcoder_contracts.judge import MAX_TESTS
from deepcoder_trainer.curation import filters
from deepcoder_trainer.curation.contamination import EvaluationIndex
from deepcoder_trainer.curation.duplicates import Cluster, Clusters
from deepcoder_trainer.curation.filters import Settings
from deepcoder_trainer.curation.rates import Measured
from deepcoder_trainer.curation.shingles import shingles, words
from deepcoder_trainer.curation.spool import Span, Spool
from deepcoder_trainer.curation.tally import Dropped, Tally, excerpt
from deepcoder_trainer.problems.files import DatasetError, FileRow, data_files, place_of, read_rows
from deepcoder_trainer.problems.humaneval import humaneval_problem, is_humaneval
from deepcoder_trainer.problems.prompt import prompt_lengths
from deepcoder_trainer.problems.readers import Unwanted, reader_for, source_by, source_of_released
from deepcoder_trainer.problems.record import Record
from deepcoder_trainer.problems.rows import RowError, check_judgeable

_CHUNK = 256
"""Largest number of records per chunk, whose prompts are encoded together."""
_CHUNK_CHARACTERS = 32 << 20
"""Number of characters of tests from which on a chunk is complete. Two chunks are in memory at a time."""

Advance = Callable[[float], None]
"""Receives the share of all bytes that was read."""


@dataclass(frozen=True)
class Input:
    """A problem set on this machine."""

    name: str
    path: Path
    layout: Layout | None = None
    """Layout of its rows; None: determined from each row's columns."""
    splits: Sequence[str] = ()
    """Splits to read if the folder has several."""

    @property
    def files(self) -> list[Path]:
        """The files to read. Raises DatasetError."""
        return data_files(self.path, self.splits)


@dataclass(frozen=True)
class Candidate:
    """A record that no filter has dropped yet."""

    id: str
    source: str
    place: str
    excerpt: str
    span: Span
    tests: int
    tokens: int | None
    """Tokens of its prompt; None without a tokenizer."""
    pass_rate: float | None


@dataclass
class Prepared:
    """The problems that are left to verify."""

    candidates: list[Candidate] = field(default_factory=list)
    clusters: list[Cluster] = field(default_factory=list)
    """Clusters of indices of candidates. At most one problem of each cluster is kept."""
    layouts: dict[str, list[str]] = field(default_factory=dict)
    """Input to the layouts that were found in it."""
    without_rate: int = 0
    """Number of problems without a pass rate, if rates were given."""


def index_evaluations(sets: Sequence[Input], settings: Settings) -> EvaluationIndex:
    """Index all problems of the evaluation sets. Raises DatasetError for an unreadable row: it would go unprotected."""
    index = EvaluationIndex(settings.contamination)
    for known in sets:
        for file in known.files:
            for row in read_rows(file):
                place = place_of(file, known.path, row.number)
                try:
                    if known.layout is None and is_humaneval(row.fields):  # a layout only of evaluation sets
                        problem = humaneval_problem(row.fields)
                        index.add(f"{known.name} ({problem.id})", str(row.fields["prompt"]), ())
                        continue
                    record = reader_for(row.fields, known.layout)[1](row.fields, known.name)
                except Unwanted as kept_away:  # not evaluated, but its statement is part of the published set
                    index.add(f"{known.name} ({place})", kept_away.statement, ())
                    continue
                except RowError as error:
                    raise DatasetError(f"evaluation set {known.name}, {place}: {error}") from None
                index.add(f"{known.name} ({record.id or place})", record.statement, record.tests)
    index.freeze()
    return index


class Preparation:
    """One pass over all inputs."""

    def __init__(
        self,
        settings: Settings,
        tally: Tally,
        spool: Spool,
        *,
        evaluations: EvaluationIndex,
        tokenizer: Any = None,
        pass_rates: Measured | None = None,
        split: str = "train",
    ) -> None:
        self._settings, self._tally, self._spool = settings, tally, spool
        self._evaluations, self._tokenizer, self._rates = evaluations, tokenizer, pass_rates
        self._split = split
        self._checks = filters.of_one(settings)
        self._clusters = Clusters(settings.near_duplicate)
        self._ids: dict[str, str] = {}
        self._ordinals: Counter[str] = Counter()
        self._prepared = Prepared()
        self._rated, self._unrated = 0, ""
        """How many problems have a pass rate, and the first that has none."""
        self._first_refusal = ""
        """Reason for the first refused row of the current file."""

    def run(self, inputs: Sequence[Input], advance: Advance = lambda share: None) -> Prepared:
        """Read all inputs. `advance` receives the progress. Raises DatasetError for a file without a usable row."""
        # Encoding prompts is half of the work and releases the GIL, so the next rows are read meanwhile.
        with ThreadPoolExecutor(1, "encode") as encoder:
            before: tuple[list[Record], Future[list[int | None]]] | None = None
            for chunk in _chunks(self._records(inputs, advance)):
                encoded = encoder.submit(self._lengths, chunk)
                if before is not None:
                    self._decide(before[0], before[1].result())
                before = chunk, encoded
            if before is not None:
                self._decide(before[0], before[1].result())
        if self._rates is not None:
            self._rates.check(len(self._ids), self._rated, self._unrated)
        self._prepared.clusters = self._clusters.all
        return self._prepared

    def _lengths(self, chunk: list[Record]) -> list[int | None]:
        if self._tokenizer is None:
            return [None] * len(chunk)
        return list(prompt_lengths([r.prompt for r in chunk], self._tokenizer))

    def _records(self, inputs: Sequence[Input], advance: Advance) -> Iterator[Record]:
        files = [(i, file) for i in inputs for file in i.files]
        total, before = sum(f.stat().st_size for _, f in files) or 1, 0
        for given, file in files:
            size, usable, self._first_refusal = file.stat().st_size, 0, ""
            for row in read_rows(file):
                advance((before + size * row.done) / total)
                record = self._read(given, file, row)
                if record is None:
                    continue
                usable += 1
                if self._rate(record) is not None:
                    self._rated += 1
                else:
                    self._unrated = self._unrated or record.id
                if (dropped := filters.first_reason(record, self._checks)) is None:
                    yield record
                else:
                    self._drop(record, *dropped)
            before += size
            if not usable and self._first_refusal:
                raise DatasetError(f"no row of {given.name}={file} can be used; {self._first_refusal}")

    def _read(self, given: Input, file: Path, row: FileRow) -> Record | None:
        """Return the record of a row, or count a drop and return None."""
        place, fields = f"{given.name}/{place_of(file, given.path, row.number)}", row.fields
        source, counted = given.name, False
        try:
            layout, reader = reader_for(fields, given.layout)
            if layout is Layout.RELEASED:
                source = source_of_released(fields, file, given.path, given.name)
            layouts = self._prepared.layouts.setdefault(given.name, [])
            if layout not in layouts:
                layouts.append(layout)
            of_all = source_by(layout, source)
            # Numbered before it is read, so that a row's number does not depend on whether earlier rows are usable.
            number = None if of_all is None else self._number(of_all)
            record = reader(fields, source)
            source, counted = record.source, True
            self._tally.read[source] += 1
            return self._placed(record.at(place, self._number(source) if number is None else number, self._split))
        except (RowError, Unwanted) as error:
            self._tally.read[source] += not counted
            name = filters.UNWANTED if isinstance(error, Unwanted) else filters.UNREADABLE
            if name == filters.UNREADABLE:
                self._first_refusal = self._first_refusal or f"{place}: {error}"
            self._tally.drop(Dropped("", source, place, name, str(error)))
            return None

    def _number(self, source: str) -> int:
        """Return the next row number of a source."""
        self._ordinals[source] += 1
        return self._ordinals[source] - 1

    def _placed(self, record: Record) -> Record:
        """Return the record if it can be judged and its id is unique. Raises RowError."""
        if len(record.tests) > MAX_TESTS:
            raise RowError(f"tests: {len(record.tests)}, more than the {MAX_TESTS} that are judged: leave some out")
        check_judgeable(record.problem())
        if (other := self._ids.setdefault(record.id, record.place)) != record.place:
            raise RowError(f"id: {record.id!r} was used at {other}: give each problem an id of its own")
        return record

    def _rate(self, record: Record) -> float | None:
        return None if self._rates is None else self._rates.of(record.id, record.prompt)

    def _decide(self, chunk: list[Record], lengths: list[int | None]) -> None:
        for record, tokens in zip(chunk, lengths, strict=True):
            found = words(record.statement)
            numbers = shingles(found)
            rate = self._rate(record)
            dropped = self._reason(record, tokens, rate, numbers)
            if dropped is not None:
                self._drop(record, *dropped)
                continue
            try:
                span = self._spool.append(record)
            except UnicodeEncodeError as error:
                self._drop(record, filters.UNREADABLE, f"a text is not valid Unicode ({error.reason}): fix it")
                continue
            self._prepared.without_rate += self._rates is not None and rate is None
            self._clusters.add(len(self._prepared.candidates), found, numbers)
            self._prepared.candidates.append(
                Candidate(
                    record.id,
                    record.source,
                    record.place,
                    excerpt(record.statement),
                    span,
                    len(record.tests),
                    tokens,
                    rate,
                )
            )

    def _reason(self, record: Record, tokens: int | None, rate: float | None, numbers: Any) -> tuple[str, str] | None:
        if tokens is not None and (reason := filters.too_long(tokens, self._settings)) is not None:
            return filters.LONG_PROMPT, reason
        if (reason := self._evaluations.reason(numbers, record.tests)) is not None:
            return filters.CONTAMINATED, reason
        if rate is not None and (reason := filters.out_of_reach(rate, self._settings)) is not None:
            return filters.PASS_RATE, reason
        return None

    def _drop(self, record: Record, name: str, reason: str) -> None:
        self._tally.drop(Dropped(record.id, record.source, record.place, name, reason, excerpt(record.statement)))


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += sum(len(given) + len(expected) for given, expected in record.tests)
        if len(chunk) == _CHUNK or size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
