"""A run that waits for somebody: nobody mends a demo while it runs, so it is given up after a while, with the reason.

What keeps it from going on is in two of its conditions: `Accepted` (a Secret, the bucket, judges that refuse to start
or were missing) and `SandboxReady` (a pool of which no judge comes). Their messages hold the mend. Both are false for a
moment in every run; how long is told by this machine's clock, whatever the cluster's says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

WAIT_SECONDS = {"Accepted": 180.0, "SandboxReady": 600.0}
"""How long in a row each may be false, what says most first. A run that is accepted has judges in tens of seconds, and
in some minutes where their image has to be pulled."""

_NOT_MADE = "PoolNotMade"
"""Reason of a run whose pool is not wanted yet."""


class WaitLimit:
    """Remembers since when a run waits."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}

    def spent(self, run: dict[str, Any]) -> str | None:
        """What the run has waited for too long, None as long as it has not."""
        now, waits = self._clock(), _waits(run)
        self._since = {kind: self._since.get(kind, now) for kind in waits}
        for kind, message in waits.items():
            if now - self._since[kind] >= WAIT_SECONDS[kind]:
                return f"the run has waited for {WAIT_SECONDS[kind]:.0f} s and would go on waiting: {message}"
        return None


def _waits(run: dict[str, Any]) -> dict[str, str]:
    """What keeps the run from going on, by condition."""
    conditions = {c["type"]: c for c in run.get("status", {}).get("conditions", [])}
    found = (conditions.get(kind, {}) for kind in WAIT_SECONDS)
    return {
        c["type"]: f"{c['reason']}: {c.get('message', '')}"
        for c in found
        if c.get("status") == "False" and c["reason"] != _NOT_MADE
    }
