"""A plan in the making, and the plan itself: actions, the status to write, events, and when to look again.

Actions are intents by name, carried out after the status was written, in order, each idempotent: whoever crashes
between two of them leaves a state from which the next pass plans the rest.
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
    """A text whose end says what follows: of what comes before, what a trainer said, there is as much as has room."""
    room = length - len(end)
    return (text if len(text) <= room else f"{text[: max(room - 1, 0)]}…") + end


@dataclass(frozen=True)
class AddFinalizer:
    """Hold the run's deletion until it has drained."""


@dataclass(frozen=True)
class EnsureFoundation:
    """Make what all attempts share: the claim of its folder, service account, network policy."""


@dataclass(frozen=True)
class EnsurePool:
    """Make the run's own SandboxPool if it is not there."""


@dataclass(frozen=True)
class CreateAttempt:
    """Make the resolved config if it is not there, and the live attempt's ConfigMap and RayJob."""

    attempt: AttemptStatus


@dataclass(frozen=True)
class DeleteRayJob:
    """Delete a RayJob of ours, and with it its cluster."""

    name: str
    uid: str


@dataclass(frozen=True)
class SavePostMortem:
    """Save what is known of an attempt that failed (its driver's log, events, pods) before its cluster goes.

    Best effort within `POST_MORTEM_SECONDS`: whatever of it cannot be had, the cluster goes.
    """

    attempt: AttemptStatus


@dataclass(frozen=True)
class EndPods:
    """End pods of an attempt that is over without the grace that draining would have needed."""

    pods: tuple[tuple[str, str], ...]
    """Name and uid of each: whatever comes under a name later is left alone."""


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
    """Let the run go."""


@dataclass(frozen=True)
class DeleteRun:
    """Delete the run itself: its time after finishing has passed."""


Action = (
    AddFinalizer
    | EnsureFoundation
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
    """Carried out after, in order, up to the first that cannot be; the next plan sees why."""
    events: tuple[EventRecord, ...] = ()
    """Posted once the status is written, so that an action that fails loses none."""
    requeue_after: float = RESYNC_SECONDS
    """Seconds until the next look, if nothing happens before."""


@dataclass
class Draft:
    """Collects changes; steps of the planner write to it."""

    run: DeepCoderRun
    now: datetime
    status: RunStatus
    actions: list[Action] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)
    requeue: float = RESYNC_SECONDS

    def update(self, **changes: Any) -> None:
        """Change fields of the status."""
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
        """The live attempt; only called where there is one."""
        if self.status.attempt is None:
            raise AssertionError("no live attempt")
        return self.status.attempt

    def stage(self, index: int) -> Stage:
        """A stage as it is asked for."""
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
        """Say in one sentence what the run does now."""
        self.condition("Progressing", going, reason, message)

    def event(self, reason: str, message: str, *, warning: bool = False) -> None:
        """Post an event."""
        self.events.append(EventRecord(reason, message[:EVENT_LENGTH], warning))

    def do(self, action: Action) -> None:
        """Add an action, once."""
        if action not in self.actions:
            self.actions.append(action)

    def look_again(self, at: datetime | float) -> None:
        """Plan again no later than this: a time, or seconds from now."""
        seconds = at if isinstance(at, int | float) else (at - self.now).total_seconds()
        self.requeue = min(self.requeue, max(seconds, 0.0))

    def due(self, since: datetime, seconds: float) -> bool:
        """Whether a bound has passed; if not, plan again when it does."""
        deadline = since + timedelta(seconds=seconds)
        if self.now >= deadline:
            return True
        self.look_again(deadline)
        return False

    def plan(self) -> Plan:
        """The finished plan."""
        return Plan(self.status, tuple(self.actions), tuple(self.events), self.requeue)
