"""The outcome of every problem: counts by source and filter, and a few examples of drops with their reasons."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

EXAMPLES = 5
"""Examples kept of each source and filter."""
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
    """At most `LONGEST_REASON` characters of it: it may quote the row."""
    excerpt: str = ""
    """How its statement begins."""


def excerpt(statement: str) -> str:
    """The beginning of a statement on one line."""
    text = " ".join(statement[: 4 * _EXCERPT].split())
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


class Tally:
    """Counts and examples; every problem that was dropped, in the order in which that was found."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.unverified: Counter[str] = Counter()
        """Kept without an official solution."""
        self.by_filter: dict[str, Counter[str]] = defaultdict(Counter)
        """Source to filter to problems."""
        self.examples: dict[str, list[Dropped]] = defaultdict(list)
        """Filter to examples."""
        self.dropped: list[Dropped] = []

    def drop(self, dropped: Dropped) -> None:
        """Count it."""
        dropped = replace(dropped, reason=dropped.reason[:LONGEST_REASON])
        count = self.by_filter[dropped.source]
        count[dropped.filter] += 1
        if count[dropped.filter] <= EXAMPLES:
            self.examples[dropped.filter].append(dropped)
        self.dropped.append(dropped)

    @property
    def sources(self) -> list[str]:
        """Sources in the order in which they were met."""
        return list(self.read)
