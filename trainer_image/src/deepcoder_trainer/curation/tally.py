"""The outcome of every problem: counts by source and filter, and a few examples of drops with their reasons."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

EXAMPLES = 5
"""Number of examples per source and filter."""
LONGEST_REASON = 500
_EXCERPT = 240


@dataclass(frozen=True)
class Dropped:
    """A problem that was dropped."""

    id: str
    source: str
    place: str
    filter: str
    reason: str
    """The reason, cut to `LONGEST_REASON` characters because it may quote the row."""
    excerpt: str = ""
    """The beginning of its statement."""


def excerpt(statement: str) -> str:
    """Return the beginning of a statement on one line."""
    text = " ".join(statement[: 4 * _EXCERPT].split())
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


class Tally:
    """Counts, examples, and the list of all dropped problems in the order of the decisions."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.unverified: Counter[str] = Counter()
        """Problems per source that are kept without an official solution."""
        self.by_filter: dict[str, Counter[str]] = defaultdict(Counter)
        """Source to filter to number of dropped problems."""
        self.examples: dict[str, list[Dropped]] = defaultdict(list)
        """Filter to examples."""
        self.dropped: list[Dropped] = []

    def drop(self, dropped: Dropped) -> None:
        """Count a dropped problem."""
        dropped = replace(dropped, reason=dropped.reason[:LONGEST_REASON])
        count = self.by_filter[dropped.source]
        count[dropped.filter] += 1
        if count[dropped.filter] <= EXAMPLES:
            self.examples[dropped.filter].append(dropped)
        self.dropped.append(dropped)

    @property
    def sources(self) -> list[str]:
        """Sources in reading order."""
        return list(self.read)
