"""kopf without state on objects: it compares nothing with an earlier state and remembers nothing about handlers.

kopf copies every object of every event four times, to compare it with the last state that its change handlers saw. We
have no such handlers, and the copies would cost as much as everything that the operator does with a run's events.
"""

from __future__ import annotations

from typing import Any

from deepcoder_operator.controllers.bare_kopf import kopf


class NoDifferences(kopf.DiffBaseStorage):
    """No earlier state is stored, and the present one has nothing to compare."""

    def build(self, **_: Any) -> Any:
        """What would be compared."""
        return {}

    def fetch(self, **_: Any) -> None:
        """What was there before."""

    def store(self, **_: Any) -> None:
        """Keep what is there now."""


class NoProgress(kopf.ProgressStorage):
    """Handlers that are called for each event, and never again for the same, have no progress."""

    def fetch(self, **_: Any) -> None:
        """How far a handler has come."""

    def store(self, **_: Any) -> None:
        """Keep how far it has come."""

    def purge(self, **_: Any) -> None:
        """Forget it."""

    def touch(self, **_: Any) -> None:
        """Change the object, so that an event comes of it."""

    def clear(self, *, essence: Any) -> Any:
        """What would be compared, without what is kept here."""
        return essence
