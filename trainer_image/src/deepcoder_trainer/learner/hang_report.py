"""Describes ranks that do not answer: where they are stuck, with the rarest places first.

Usually all of hundreds of ranks wait for one. Each place is reported once, with its ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

from deepcoder_trainer.thread_stacks import ThreadStacks

MOST_PLACES = 4
"""Number of places that are reported in detail."""


def places(found: Mapping[int, ThreadStacks | None]) -> str:
    """Describe where each rank is stuck, in one line. None stands for a rank that did not answer."""
    by_place = _by_place(found)
    told = [f"{names(ranks)} {_where([found[rank] for rank in ranks])}" for ranks in by_place[:MOST_PLACES]]
    if more := [rank for ranks in by_place[MOST_PLACES:] for rank in ranks]:
        told.append(f"{names(sorted(more))} elsewhere")
    return "; ".join(told)


def stacks(found: Mapping[int, ThreadStacks | None]) -> list[str]:
    """Return the thread stacks of one rank for each place that `places` reports in detail."""
    told = [(ranks, found[ranks[0]]) for ranks in _by_place(found)[:MOST_PLACES]]
    return [f"{names(ranks)}, of rank {ranks[0]}:\n{where.stacks}" for ranks, where in told if where is not None]


def names(ranks: Iterable[int]) -> str:
    """Name ranks as in `rank 3` or `ranks 0-6, 8`."""
    runs = [[rank for _, rank in run] for _, run in groupby(enumerate(ranks), lambda pair: pair[1] - pair[0])]
    told = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"rank{'s' * (len(runs) > 1 or len(runs[0]) > 1)} {told}"


def _by_place(found: Mapping[int, ThreadStacks | None]) -> list[list[int]]:
    """Group ranks that are stuck at the same place, smallest group first."""
    ranks: dict[object, list[int]] = {}
    for rank, where in sorted(found.items()):
        key = None if where is None else tuple((place.call, place.at) for place in where.places)
        ranks.setdefault(key, []).append(rank)
    return sorted(ranks.values(), key=len)


def _where(found: list[ThreadStacks | None]) -> str:
    first = found[0]
    if first is None:
        return "not saying where: not placed, gone, stopped, or held by native code"
    if not first.places:
        return "at no call: it has answered all that has reached it"
    return " and ".join(
        f"in {place.call} for {max(where.places[i].seconds for where in found if where):.0f} s at {place.at}"
        for i, place in enumerate(first.places)
    )
