"""kopf without state on objects: it compares nothing with an earlier state and remembers nothing about handlers.

kopf copies every object of every event four times, to compare it with the last state that its change handlers saw. We
have no such handlers, and the copies would cost as much as everything that the operator does with a run's events.
"""

from __future__ import annotations

from typing import Any

from deepcoder_operator.controllers.bare_kopf import kopf


class NoDifferences(kopf.DiffBaseStorage):
    """Stores no earlier state, and gives kopf nothing to compare."""

    def build(self, **_: Any) -> Any:
        """Return the part of an object that kopf compares: nothing."""
        return {}

    def fetch(self, **_: Any) -> None:
        """Return no earlier state."""

    def store(self, **_: Any) -> None:
        """Store nothing."""


class NoProgress(kopf.ProgressStorage):
    """Stores no progress of handlers. Ours are called once per event and are never retried."""

    def fetch(self, **_: Any) -> None:
        """Return no progress."""

    def store(self, **_: Any) -> None:
        """Store nothing."""

    def purge(self, **_: Any) -> None:
        """Delete nothing."""

    def touch(self, **_: Any) -> None:
        """Do not touch the object, which would cause an event."""

    def clear(self, *, essence: Any) -> Any:
        """Return the object's part unchanged: it contains no progress."""
        return essence
