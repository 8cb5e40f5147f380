"""The plan of a pass, and its draft: actions, the status to write, events, and when to run the next pass.

Actions are carried out in order, after the status was written. Each is idempotent: after a crash between two actions,
the next pass plans the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_contracts.api.condition import ConditionStatus
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.run_status import RunStatus, StageStatus
from deepcoder_contracts.api.stage import Stage
from deepcoder_operator.domain.conditions import set_condition

RESYNC_SECONDS = 300.0

EVENT_LENGTH = 1000
"""Characters kept of an event's message."""


def fitted(text: str, end: str, length: int = EVENT_LENGTH) -> str:
    """Append `end`, which says what follows, and cut `text`, which may quote a trainer, to the room that is left."""
    room = length - len(end)
    return (text if len(text) <= room else f"{text[: max(room - 1, 0)]}…") + end


@dataclass(frozen=True)
class AddFinalizer:
    """Add the finalizer, which holds the run's deletion until it has drained."""


@dataclass(frozen=True)
class EnsureRunObjects:
    """Create what all attempts share: the claim of the run's folder, service account, network policy."""


@dataclass(frozen=True)
class EnsurePool:
    """Create the run's own SandboxPool if it does not exist."""


@dataclass(frozen=True)
class CreateAttempt:
    """Create the resolved config if it does not exist, and the live attempt's ConfigMap and RayJob."""

    attempt: AttemptStatus


@dataclass(frozen=True)
class DeleteRayJob:
    """Delete a RayJob of the run, and with it its cluster."""

    name: str
    uid: str


@dataclass(frozen=True)
class SavePostMortem:
    """Save what is known about a failed attempt (its driver's log, events, pods) before its cluster is deleted.

    Best effort within `POST_MORTEM_SECONDS`. The cluster is deleted even if parts cannot be saved.
    """

    attempt: AttemptStatus


@dataclass(frozen=True)
class EndPods:
    """End the pods of an attempt that is over, without the long grace period for draining."""

    pods: tuple[tuple[str, str], ...]
    """Name and UID of each pod. A later pod with the same name is left alone."""


@dataclass(frozen=True)
class DeletePool:
    """Delete the run's own SandboxPool, and with it its judges."""

    name: str
    uid: str


@dataclass(frozen=True)
class DeleteArtifacts:
    """Delete the run's folder in the bucket."""


@dataclass(frozen=True)
class RemoveFinalizer:
    """Remove the run's finalizer."""


@dataclass(frozen=True)
class DeleteRun:
    """Delete the run itself, because ttlSecondsAfterFinished has passed."""


Action = (
    AddFinalizer
    | EnsureRunObjects
    | EnsurePool
    | CreateAttempt
    | SavePostMortem
    | DeleteRayJob
    | EndPods
    | DeletePool
    | DeleteArtifacts
    | RemoveFinalizer
    | DeleteRun
)


@dataclass(frozen=True)
class EventRecord:
    """An event on the run."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Plan:
    """What a pass does."""

    status: RunStatus
    """Written first, if it differs."""
    actions: tuple[Action, ...] = ()
    """Carried out next, in order, up to the first that fails. The next plan sees why."""
    events: tuple[EventRecord, ...] = ()
    """Posted once the status is written, so that a failing action loses no event."""
    requeue_after: float = RESYNC_SECONDS
    """Seconds until the next pass, if nothing happens before."""
    hindered: str = ""
    """Why the run waits for somebody's help although no action was refused."""


@dataclass
class Draft:
    """A plan in progress. The steps of the planner write to it."""

    run: DeepCoderRun
    now: datetime
    status: RunStatus
    actions: list[Action] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)
    requeue: float = RESYNC_SECONDS
    hindered: str = ""

    def update(self, **changes: Any) -> None:
        """Change fields of the status."""
        if any(getattr(self.status, name) != value for name, value in changes.items()):  # most changes change nothing
            self.status = self.status.model_copy(update=changes)

    def update_attempt(self, **changes: Any) -> AttemptStatus:
        """Change fields of the live attempt."""
        attempt = self.attempt.model_copy(update=changes)
        self.update(attempt=attempt)
        return attempt

    def update_stage(self, index: int, **changes: Any) -> StageStatus:
        """Change fields of a stage's entry."""
        stages = list(self.status.stages)
        stages[index] = stages[index].model_copy(update=changes)
        self.update(stages=stages)
        return stages[index]

    @property
    def attempt(self) -> AttemptStatus:
        """The live attempt. Use it only if there is one."""
        if self.status.attempt is None:
            raise AssertionError("no live attempt")
        return self.status.attempt

    def stage(self, index: int) -> Stage:
        """Return a stage of the spec."""
        return self.run.spec.stages[index]

    def condition(self, type_: str, status: ConditionStatus | bool, reason: str, message: str = "") -> None:
        """Set a condition."""
        self.update(
            conditions=set_condition(
                self.status.conditions,
                type_,
                status,
                reason,
                message,
                generation=self.run.metadata.generation,
                now=self.now,
                stored=self.run.status.conditions,
            )
        )

    def progressing(self, going: bool, reason: str, message: str) -> None:
        """Set the condition Progressing: one sentence that says what the run does now."""
        self.condition("Progressing", going, reason, message)

    def event(self, reason: str, message: str, *, warning: bool = False) -> None:
        """Post an event."""
        self.events.append(EventRecord(reason, message[:EVENT_LENGTH], warning))

    def do(self, action: Action) -> None:
        """Add an action, unless the plan has it already."""
        if action not in self.actions:
            self.actions.append(action)

    def look_again(self, at: datetime | float) -> None:
        """Run the next pass no later than this: a time, or seconds from now."""
        seconds = at if isinstance(at, int | float) else (at - self.now).total_seconds()
        self.requeue = min(self.requeue, max(seconds, 0.0))

    def due(self, since: datetime, seconds: float) -> bool:
        """Whether a bound has passed. If not, run the next pass when it does."""
        deadline = since + timedelta(seconds=seconds)
        if self.now >= deadline:
            return True
        self.look_again(deadline)
        return False

    def plan(self) -> Plan:
        """Return the finished plan."""
        return Plan(self.status, tuple(self.actions), tuple(self.events), self.requeue, self.hindered)
