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
"""Judges take a while to start, and are replaced one by one: what keeps them from it is told when it has lasted."""

_WAITS = frozenset({Phase.PENDING, Phase.BACKOFF, Phase.HELD, Phase.FAILED})
"""Phases that ask why."""


class ConditionMessage(NamedTuple):
    """What a condition says."""

    type: str
    status: str
    reason: str
    message: str

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.type}={self.status} {self.reason}: {self.message}"

    @property
    def key(self) -> tuple[str, str]:
        """What stays the same while its words change."""
        return self.type, self.reason


_NOTHING = ConditionMessage("Progressing", "Unknown", "", "")


def troubles(status: Object) -> list[ConditionMessage]:
    """Each condition that says of itself that something is wrong with the run."""
    return [said for said in _said(status) if TROUBLE.get(said.type) == said.status and said.message]


def progressing(status: Object) -> ConditionMessage:
    """What the run is about, or why it waits, in the operator's words; empty where it has not said anything."""
    return next((said for said in _said(status) if said.type == "Progressing"), _NOTHING)


def judges_trouble(pool: Object | None) -> ConditionMessage | None:
    """What keeps judges from being there, or from being enough, in the pool's own words."""
    for said in _said((pool or {}).get("status") or {}):
        wrong = (said.type in ("Accepted", "Ready") and said.status == "False") or said.reason == "AtMaximum"
        if wrong and said.message:
            return said._replace(type=f"judges: {said.type}")
    return None


def avoided_nodes(pool: Object | None) -> list[str]:
    """The nodes on which no judge is made for a while, each with what the one that did not start there said last."""
    nodes = ((pool or {}).get("status") or {}).get("avoidedNodes") or ()
    return [
        f"judges: none is made on node {n['name']}, where one did not start: {n.get('message') or '–'}" for n in nodes
    ]


class NewMessages:
    """What a log was told: each thing once, for as long as it goes on."""

    def __init__(self) -> None:
        self._troubles: set[tuple[str, str]] = set()
        self._judges: set[tuple[str, str]] = set()
        self._judges_since: float | None = None
        self._waiting: tuple[str, str] | None = None

    def news(self, snapshot: Snapshot, now: float) -> list[str]:
        """Lines that are to be told of it; `now` is seconds of a clock that only goes forward."""
        status = snapshot.run.get("status") or {}
        wrong = troubles(status)
        new = [said.text for said in wrong if said.key not in self._troubles]
        self._troubles = {said.key for said in wrong}
        return new + list(self._why(status, wrong)) + list(self._of_judges(snapshot.pool, now))

    def _why(self, status: Object, wrong: Iterable[ConditionMessage]) -> Iterable[str]:
        """Why it waits; nothing where a trouble has just that to say."""
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
