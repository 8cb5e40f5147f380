"""Reads standings and ratings of Codeforces contests from files, in the form in which the public API returns them.

A folder holds `standings/<contest>.json` and `ratingChanges/<contest>.json`, the responses of `contest.standings` (with
`showUnofficial=false`) and `contest.ratingChanges`. For percentiles it holds `ratings.json`, the ratings of all users
as a list or as counts by rating. If the problems do not say which ones they are, it also holds `problems.json`, their
names (`1234A`) in the problem set's order. Nothing is downloaded, so that a rating stays reproducible. If a file cannot
be read, the error names it. A contest whose files are missing or do not match is left out of the rating and reported.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcoder_trainer.checkpoint.storage import file_sha256
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.codeforces import Contest
from deepcoder_trainer.problems.json_text import value_of

MAX_FILE_BYTES = 512 << 20
"""Largest file: standings of the largest contests have tens of megabytes."""
MAX_USERS = 10_000_000
"""Largest number of user ratings in a file: Codeforces has less than a million users."""


@dataclass(frozen=True)
class Contests:
    """A folder of contests."""

    folder: Path
    digest: str
    """Digest of the names and contents of its JSON files."""
    problems: tuple[str, ...] | None
    """Names of the problems, in the problem set's order, if problems.json exists."""
    ratings: tuple[float, ...] | None
    """Ratings of all users, sorted, if ratings.json exists."""

    def contest(self, name: str) -> Contest | str:
        """Return a contest, or the reason why it cannot be used. Raises BadConfig if a file is not the API's."""
        standings, changes = (self.folder / kind / f"{name}.json" for kind in ("standings", "ratingChanges"))
        missing = [p for p in (standings, changes) if not p.is_file()]
        if missing:
            return f"no {missing[0].parent.name}/{missing[0].name}"
        try:
            return _contest(_result(standings), _result(changes))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise BadConfig(
                f"{standings} or {changes.parent.name}/{changes.name} is not an answer of the Codeforces API "
                f"({type(error).__name__}: {error}): fetch it again",
                field="contests",
            ) from None


def read_contests(folder: Path) -> Contests:
    """Read a folder. Raises BadConfig."""
    if not (folder / "standings").is_dir():
        raise BadConfig(
            f"contests {folder} has no folder standings: put contest.standings of each contest there as "
            "standings/<contest>.json, and contest.ratingChanges as ratingChanges/<contest>.json",
            field="contests",
        )
    files = sorted(folder.rglob("*.json"))
    listing = "".join(f"{f.relative_to(folder).as_posix()} {file_sha256(f)}\n" for f in files)
    return Contests(
        folder=folder,
        digest="sha256:" + hashlib.sha256(listing.encode()).hexdigest(),
        problems=_problems(folder / "problems.json"),
        ratings=_ratings(folder / "ratings.json"),
    )


def _contest(standings: Mapping[str, Any], changes: list[Mapping[str, Any]]) -> Contest | str:
    handles = {row["party"]["members"][0]["handle"] for row in standings["rows"]} & {c["handle"] for c in changes}
    rows = [row for row in standings["rows"] if row["party"]["members"][0]["handle"] in handles]
    ratings = [int(change["oldRating"]) for change in changes if change["handle"] in handles]
    if len(rows) != len(ratings):
        return f"{len(rows)} rows of standings and {len(ratings)} changes of ratings do not fit together"
    return Contest(
        problems={f"{p['contestId']}{p['index']}": p.get("points") for p in standings["problems"]},
        standings=[(float(row["points"]), float(row["penalty"])) for row in rows],
        ratings=ratings,
    )


def _result(path: Path) -> Any:
    """Return the API's result, with or without its envelope."""
    document = _json(path)
    return document["result"] if isinstance(document, dict) and "result" in document else document


def _problems(path: Path) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    names = _json(path)
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise BadConfig(f'{path}: not a list of problems: write ["1234A", …]', field="contests")
    return tuple(names)


def _ratings(path: Path) -> tuple[float, ...] | None:
    if not path.is_file():
        return None
    given = _json(path)
    try:
        pairs = given.items() if isinstance(given, dict) else [(value, 1) for value in given]
        counted = [(_finite(value), int(count)) for value, count in pairs]
    except (TypeError, ValueError, OverflowError) as error:
        raise BadConfig(
            f'{path}: neither a list of ratings nor counts by rating ({error}): write [1500, …] or {{"1500": 12, …}}',
            field="contests",
        ) from None
    users = sum(count for _, count in counted)
    if users > MAX_USERS or any(count < 0 for _, count in counted):
        raise BadConfig(
            f"{path}: counts of {users:,} users: none may be below 0, and all are {MAX_USERS:,} at most",
            field="contests",
        )
    ratings = tuple(sorted(value for value, count in counted for _ in range(count)))
    if not ratings:
        raise BadConfig(
            f"{path}: no rating in it: leave the file out, or put all users' ratings there", field="contests"
        )
    return ratings


def _finite(value: Any) -> float:
    """Return a number. Raises ValueError for NaN too: a list with it has no order, and no share is below a rating."""
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{value} is no rating")
    return number


def _json(path: Path) -> Any:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadConfig(f"{path} has more than {MAX_FILE_BYTES >> 20} MiB: not a contest's file", field="contests")
    try:
        return value_of(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"{path}: not JSON ({error}): fetch it again", field="contests") from None
