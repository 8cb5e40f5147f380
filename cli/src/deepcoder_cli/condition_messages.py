"""Selects the messages of a run's and its pool's conditions that say what is wrong, and those that are new for a log.

A log has one line per change of state, so it must say why a run waits, but only once: the words of a message change
from one look to the next (seconds, counts, pod names) while the meaning stays the same. Pure, except for what
`NewMessages` remembers. Missing fields give no messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from deepcoder_cli.snapshot import Snapshot
from deepcoder_client.connection import Object
from deepcoder_contracts.api.run_status import TROUBLE, Phase

JUDGES_SECONDS = 30.0
"""Seconds for which a problem of judges must last to be reported: they start slowly and are replaced one by one."""

_WAITS = frozenset({Phase.PENDING, Phase.BACKOFF, Phase.HELD, Phase.FAILED})
"""Phases in which the reason is reported."""


class ConditionMessage(NamedTuple):
    """The content of a condition."""

    type: str
    status: str
    reason: str
    message: str

    @property
    def text(self) -> str:
        """The condition as one line of text."""
        return f"{self.type}={self.status} {self.reason}: {self.message}"

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the message while its words change."""
        return self.type, self.reason


_NOTHING = ConditionMessage("Progressing", "Unknown", "", "")


def troubles(status: Object) -> list[ConditionMessage]:
    """Return the conditions that report a problem of the run."""
    return [said for said in _said(status) if TROUBLE.get(said.type) == said.status and said.message]


def progressing(status: Object) -> ConditionMessage:
    """Return the operator's message about what the run does or waits for; empty if there is none."""
    return next((said for said in _said(status) if said.type == "Progressing"), _NOTHING)


def judges_trouble(pool: Object | None) -> ConditionMessage | None:
    """Return the pool's message about why judges are missing or too few, or None."""
    for said in _said((pool or {}).get("status") or {}):
        wrong = (said.type in ("Accepted", "Ready") and said.status == "False") or said.reason == "AtMaximum"
        if wrong and said.message:
            return said._replace(type=f"judges: {said.type}")
    return None


def avoided_nodes(pool: Object | None) -> list[str]:
    """Return the nodes that new judges avoid, each with the last message of the judge that did not start there."""
    nodes = ((pool or {}).get("status") or {}).get("avoidedNodes") or ()
    return [
        f"judges: none start on node {n['name']}, where one failed to start: {n.get('message') or '–'}" for n in nodes
    ]


class NewMessages:
    """Selects new messages for a log: each problem is reported once while it lasts."""

    def __init__(self) -> None:
        self._troubles: set[tuple[str, str]] = set()
        self._judges: set[tuple[str, str]] = set()
        self._judges_since: float | None = None
        self._waiting: tuple[str, str] | None = None

    def news(self, snapshot: Snapshot, now: float) -> list[str]:
        """Return the new lines for a snapshot; `now` is seconds of a monotonic clock."""
        status = snapshot.run.get("status") or {}
        wrong = troubles(status)
        new = [said.text for said in wrong if said.key not in self._troubles]
        self._troubles = {said.key for said in wrong}
        return new + list(self._why(status, wrong)) + list(self._of_judges(snapshot.pool, now))

    def _why(self, status: Object, wrong: Iterable[ConditionMessage]) -> Iterable[str]:
        """Yield why the run waits, unless the message of a problem says the same."""
        said, phase = progressing(status), str(status.get("phase", ""))
        waiting = (phase, said.reason) if phase in _WAITS and said.message else None
        if waiting is not None and waiting != self._waiting and not any(said.message in w.message for w in wrong):
            yield said.message
        self._waiting = waiting

    def _of_judges(self, pool: Object | None, now: float) -> Iterable[str]:
        said = judges_trouble(pool)
        if said is None:
            self._judges, self._judges_since = set(), None
            return
        since = self._judges_since = now if self._judges_since is None else self._judges_since
        if now - since >= JUDGES_SECONDS and said.key not in self._judges:
            self._judges.add(said.key)
            yield said.text


def _said(status: Object) -> list[ConditionMessage]:
    return [
        ConditionMessage(c["type"], c["status"], c.get("reason", ""), c.get("message", ""))
        for c in status.get("conditions") or ()
    ]
