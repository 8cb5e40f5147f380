"""Limits how long the demo's run may wait. Nobody fixes problems during a demo, so it then gives up with the reason.

Two conditions say what stops a run: `Accepted` (a Secret, the bucket, judges that cannot start or were missing) and
`SandboxReady` (no judge of the pool becomes ready). Their messages say how to fix it. Both are false for a moment in
every run. The time is measured by this machine's clock, independent of the cluster's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

WAIT_SECONDS = {"Accepted": 180.0, "SandboxReady": 600.0}
"""How long each may stay false, the most informative first. An accepted run has judges after tens of seconds, or after
some minutes if their image must be pulled."""

_NOT_MADE = "PoolNotMade"
"""Reason of `SandboxReady` while the run does not need its pool yet."""


class WaitLimit:
    """Remembers since when a run has been waiting."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}

    def spent(self, run: dict[str, Any]) -> str | None:
        """What the run has waited for too long; None until then."""
        now, waits = self._clock(), _waits(run)
        self._since = {kind: self._since.get(kind, now) for kind in waits}
        for kind, message in waits.items():
            if now - self._since[kind] >= WAIT_SECONDS[kind]:
                return f"the run has waited for {WAIT_SECONDS[kind]:.0f} s and would go on waiting: {message}"
        return None


def _waits(run: dict[str, Any]) -> dict[str, str]:
    """What prevents the run from continuing, by condition."""
    conditions = {c["type"]: c for c in run.get("status", {}).get("conditions", [])}
    found = (conditions.get(kind, {}) for kind in WAIT_SECONDS)
    return {
        c["type"]: f"{c['reason']}: {c.get('message', '')}"
        for c in found
        if c.get("status") == "False" and c["reason"] != _NOT_MADE
    }
