"""Leader election with a Lease: decisions as a pure function, and the loop around them.

Clocks of machines differ, so a time written by another replica is never compared with ours: a holder counts as alive
for the duration of its lease after *we* last saw the Lease change. A leader that has not renewed for `RENEW_SECONDS`,
counted from the moment before it sent the last successful write, has lost: it raises, the process ends, and restarts as
a candidate. Others saw that write later than it was sent, so there are `LEASE_SECONDS` - `RENEW_SECONDS` before another
replica may take over, time in which requests in flight end. A process that was paused and resumes finds out through
`check`, before it sends anything, that its time is over. Requests that arrive late anyway do no harm (`session` says
why).

A leader renews with one request: a write that succeeds only if the Lease is still as it last wrote it. It reads the
Lease only when it no longer knows that: after a conflict or a failed write, and if the Lease is gone.

It fails closed: while the API server cannot be reached, no replica becomes leader, and the leader stops in time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto

from prometheus_client import Gauge

from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import LEASES

log = logging.getLogger(__name__)

LEASE_SECONDS = 15
"""Time that other replicas wait after they last saw the holder renew the Lease."""

RENEW_SECONDS = 10.0
"""Time without a renewal after which a leader stops leading."""

RETRY_SECONDS = 2.0
"""Time between two reads of the Lease, and between the starts of two renewals."""

FAILED_SECONDS = 0.5
"""Time after which a leader retries a failed renewal, and its shortest pause after a slow one. It is short, because
`RENEW_SECONDS` is running."""

CONNECTIONS = 2
ANSWER_SECONDS = 4.0
"""Deadline of one request. A leader has time for two that take nearly as long within `RENEW_SECONDS`, so it keeps the
Lease however slow they are."""

_TAKE_TRIES = 5

LEADER = Gauge("deepcoder_operator_leader", "1 if this replica is the leader")
TRANSITIONS = Gauge(
    "deepcoder_operator_lease_transitions", "Number of times that the Lease has passed to another replica"
)


@dataclass(frozen=True)
class Record:
    """The content of a Lease."""

    holder: str
    """Identity of the leading replica. Empty once it has released the Lease."""

    seconds: float
    """Duration, in seconds, for which the holder counts as alive after a renewal."""

    renewed: str
    """Time of the last renewal, by the holder's clock. It is only compared for equality."""

    transitions: int
    """Number of times that the holder has changed."""


@dataclass(frozen=True)
class Seen:
    """A record, and the time at which we first saw it, by our own clock."""

    record: Record
    at: float


class Step(Enum):
    """What a replica does about the Lease."""

    CREATE = auto()
    TAKE = auto()
    RENEW = auto()
    WAIT = auto()


def look(before: Seen | None, record: Record | None, now: float) -> Seen | None:
    """Return what is known after a read. An unchanged record keeps the time at which it was first seen."""
    if record is None:
        return None
    return before if before and before.record == record else Seen(record, now)


def decide(seen: Seen | None, me: str, now: float) -> tuple[Step, float]:
    """Return what to do, and the seconds after which to read the Lease again."""
    if seen is None:
        return Step.CREATE, RETRY_SECONDS
    if seen.record.holder == me:
        return Step.RENEW, RETRY_SECONDS
    left = seen.at + seen.record.seconds - now
    if not seen.record.holder or left <= 0:
        return Step.TAKE, RETRY_SECONDS
    return Step.WAIT, min(left, RETRY_SECONDS)


def read(lease: Object | None) -> Record | None:
    """Return the record in a Lease. If somebody else wrote it without a holder, it counts as released."""
    if lease is None:
        return None
    spec = lease.get("spec") or {}
    return Record(
        holder=spec.get("holderIdentity") or "",
        seconds=float(spec.get("leaseDurationSeconds") or LEASE_SECONDS),
        renewed=spec.get("renewTime") or "",
        transitions=int(spec.get("leaseTransitions") or 0),
    )


class Election:
    """This replica's part in the election."""

    def __init__(self, kube: Kube, namespace: str, name: str, identity: str, clock: Callable[[], float]) -> None:
        """`identity` must be unique among replicas that may run at once. `clock` never goes back.

        `kube` should have connections of its own: a renewal that queues behind many passes comes too late.
        """
        self.identity = identity
        self.leader = asyncio.Event()
        self._kube, self._namespace, self._name, self._clock = kube, namespace, name, clock
        self._seen: Seen | None = None
        self._written: Object | None = None
        self._until: float | None = None
        self._in_doubt = False
        """Whether a write was sent whose outcome is not known, so that the Lease may not be as `_written` says."""
        self._let_go = False

    @property
    def leads(self) -> bool:
        """Whether this replica leads now."""
        return self._until is not None and self._clock() < self._until

    def check(self) -> None:
        """Raise `LeadershipLost` if this replica was the leader and no longer is."""
        if self._let_go:
            raise errors.LeadershipLost(f"the lease {self._name} was released")
        if self._until is not None and self._clock() >= self._until:
            raise errors.LeadershipLost(f"the lease {self._name} could not be renewed for {RENEW_SECONDS:.0f} s")

    async def run(self) -> None:
        """Be a candidate, then leader, until cancelled. Raises `LeadershipLost`."""
        try:
            await self._compete()
        except errors.LeadershipLost as e:
            LEADER.set(0)
            log.error("%s no longer leads: %s", self.identity, e)
            raise

    async def _compete(self) -> None:
        while True:
            pause = RETRY_SECONDS if self._until is None else FAILED_SECONDS
            try:
                async with asyncio.timeout(self._patience()):
                    pause = await self.turn()
            except (errors.Conflict, errors.AlreadyExists):
                log.debug("another replica has written the lease %s meanwhile", self._name)
            except TimeoutError:
                log.warning("no answer about the lease %s in time", self._name)
            except errors.LeadershipLost:
                raise
            except errors.KubeError as e:
                log.warning("the lease %s cannot be read or written: %s", self._name, e)
            self.check()
            await asyncio.sleep(min(pause, self._patience()))
            self.check()

    async def release(self) -> None:
        """Release the Lease, so that another replica takes over at once. This replica then sends no more writes."""
        if not self.leads:
            return
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                await self._write(Step.RENEW, self._written, "")
            log.info("the lease %s is released", self._name)
        except (errors.KubeError, TimeoutError) as e:
            log.warning("the lease %s could not be released; others wait until it expires: %s", self._name, e)
        self._until, self._let_go = None, True
        self.leader.clear()
        LEADER.set(0)

    def _patience(self) -> float:
        """Return the seconds within which an answer is still useful."""
        return RENEW_SECONDS if self._until is None else max(self._until - self._clock(), 0.0)

    async def turn(self) -> float:
        """Renew the Lease, or read it and act on it once. Returns the seconds until the next turn."""
        if self.leads and self._written is not None and not self._in_doubt:
            try:
                return await self._hold(Step.RENEW, self._written, RETRY_SECONDS)
            except (errors.Conflict, errors.NotFound) as e:
                log.debug("the lease %s is not as it was written, reading it: %s", self._name, e)
        lease = await self._kube.find(LEASES, self._namespace, self._name)
        self._seen = look(self._seen, read(lease), self._clock())
        if self._seen is not None:
            TRANSITIONS.set(self._seen.record.transitions)
            if self._until is not None and self._seen.record.holder != self.identity:
                raise errors.LeadershipLost(f"the lease {self._name} is held by {self._seen.record.holder or 'nobody'}")
        step, pause = decide(self._seen, self.identity, self._clock())
        if step is Step.WAIT:
            return pause
        return await self._hold(step, lease, pause)

    async def _hold(self, step: Step, lease: Object | None, pause: float) -> float:
        """Write the Lease, and lead from then on. Returns what is left of the pause, counted like the leader's time."""
        began = self._clock()
        self._in_doubt = True  # until there is an answer: a write that timed out may have been carried out
        self._written = await self._write(step, lease, self.identity)
        self._in_doubt = False
        self._until = began + RENEW_SECONDS
        if (record := read(self._written)) is not None:
            TRANSITIONS.set(record.transitions)
        if not self.leader.is_set():
            log.info("%s leads", self.identity)
            LEADER.set(1)
            self.leader.set()
        return max(pause - (self._clock() - began), FAILED_SECONDS)

    async def _write(self, step: Step, lease: Object | None, holder: str) -> Object:
        return await _write(self._kube, self._namespace, self._name, step, lease, holder)


async def take_away(kube: Kube, namespace: str, name: str, holder: str, seconds: int) -> None:
    """Take the Lease from the leader for `seconds`. Returns once no replica leads any more.

    Only for an uninstallation: replicas never take a Lease from a live holder. The leader notices at its next renewal,
    or when it cannot renew in time, and ends. Other replicas wait until `seconds` have passed.
    """
    for _ in range(_TAKE_TRIES):
        lease = await kube.find(LEASES, namespace, name)
        before = read(lease)
        try:
            await _write(kube, namespace, name, Step.TAKE, lease, holder, seconds)
        except (errors.Conflict, errors.AlreadyExists):
            continue  # renewed meanwhile
        log.info("the lease %s is taken from %s", name, before.holder if before and before.holder else "nobody")
        if before is not None and before.holder:
            await asyncio.sleep(LEASE_SECONDS)
        return
    raise errors.Conflict(f"others changed the lease {name} {_TAKE_TRIES} times meanwhile")


async def leave_to_others(kube: Kube, namespace: str, name: str, holder: str, seconds: int) -> None:
    """Let a Lease that was taken away expire after `seconds`. A replica that starts later waits as long, because it
    cannot know the record's age."""
    lease = await kube.find(LEASES, namespace, name)
    record = read(lease)
    if record is not None and record.holder == holder:
        await _write(kube, namespace, name, Step.RENEW, lease, holder, seconds)


async def _write(
    kube: Kube, namespace: str, name: str, step: Step, lease: Object | None, holder: str, seconds: int = LEASE_SECONDS
) -> Object:
    """Write a holder, or an empty one, into the Lease as it was read. Raises `Conflict` if it has changed."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    spec: Object = {"holderIdentity": holder, "leaseDurationSeconds": seconds, "renewTime": now}
    if step is not Step.RENEW:
        spec["acquireTime"] = now
    meta: Object = {"namespace": namespace, "name": name}
    if lease is None:
        labels = {"app.kubernetes.io/managed-by": "deepcoder-operator"}
        obj = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": meta | {"labels": labels}}
        return await kube.create(obj | {"spec": spec})
    if step is Step.TAKE:
        spec["leaseTransitions"] = int((lease.get("spec") or {}).get("leaseTransitions") or 0) + 1
    version = {"resourceVersion": lease["metadata"]["resourceVersion"]}
    return await kube.patch(LEASES, namespace, name, {"metadata": version, "spec": spec})
