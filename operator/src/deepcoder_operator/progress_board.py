"""Data shared by the controllers and the progress server, in the memory of one process.

The server stores reports here and answers with the reply found here. The run controller reads the newest report and
posts the reply. The pool controller reads the announced load. Nothing here is durable: after a restart every entry is
empty until the run has been planned once. Until then the server answers 503 for the run, which the trainer tolerates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from deepcoder_contracts.progress import Desired, ProgressReply, ProgressReport, TrainerPhase

FIGURES_SECONDS = 15.0
"""Figures of a run are taken from its reports, and its status written for them alone, at most this often; so reports
that are no news need wake their run no sooner."""


OVERTAKEN_SECONDS = 60.0
"""A report that was sent before the one that is known, by less than this, was held up on its way (its token was being
reviewed, its sender had given it up); by more, its sender's clock was set back, and it is the newest."""


class RunKey(NamedTuple):
    """A DeepCoderRun by name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Heartbeat:
    """A report and when it arrived."""

    report: ProgressReport
    """What the trainer said."""

    received_at: float
    """Operator's clock, seconds since the epoch, which only goes forward."""

    pod_uid: str | None = None
    """UID of the pod that spoke."""

    alive_at: float | None = None
    """When this pod's last report that `shows_life` arrived; the board sets it."""


def shows_life(before: ProgressReport, report: ProgressReport) -> bool:
    """Whether a report shows that work goes on: another step than `before`, the same pod's last one, or another phase.

    Outside of training a report is enough: an evaluation may take longer than any step. Told from every report when it
    arrives, since what comes between two passes of the run, or two writes of its status, is seen nowhere else.
    """
    return report.step != before.step or report.phase is not TrainerPhase.TRAINING


def is_news(before: Heartbeat | None, heartbeat: Heartbeat) -> bool:
    """Whether a report says what its run should be planned for at once, not only figures that may wait."""
    if before is None or before.pod_uid != heartbeat.pod_uid:
        return True
    old, new = before.report, heartbeat.report
    return (old.phase, old.stage, old.latest_checkpoint) != (new.phase, new.stage, new.latest_checkpoint)


def is_overtaken(before: Heartbeat | None, heartbeat: Heartbeat) -> bool:
    """Whether a report says what was, and the one that is known, of the same pod, what came after it."""
    if before is None or before.pod_uid != heartbeat.pod_uid:
        return False
    return 0 < (before.report.sent_at - heartbeat.report.sent_at).total_seconds() < OVERTAKEN_SECONDS


@dataclass
class RunEntry:
    """What is known of one run."""

    reply: ProgressReply
    """Answer to the next report."""

    ordinal: int
    """The live attempt; reports of others are told to drain at once."""

    run_uid: str
    """UID of the run."""

    pool: str | None
    """SandboxPool in the run's namespace that judges for it."""

    head_uid: str | None = None
    """UID of the pod that the live attempt runs on, once it was seen: nobody else speaks for it."""

    heartbeat: Heartbeat | None = None
    """Newest report of the live attempt."""

    posted_at: float = 0.0
    """Since when its reports are taken."""

    told_at: float = float("-inf")
    """When the run was last told of a report."""


@dataclass
class ProgressBoard:
    """Entries of all runs that have a live attempt. Used from one event loop, so it needs no lock."""

    entries: dict[RunKey, RunEntry] = field(default_factory=dict)
    """Run to entry."""

    last_heard: tuple[RunKey, float] | None = None
    """Whose the last report of a live attempt was, and when it came."""

    other_heard: tuple[RunKey, float] | None = None
    """The same of the last report that came of another run than that one."""

    waiting: dict[RunKey, str] = field(default_factory=dict)
    """Runs that ask for no GPU before a judge is ready, and the SandboxPool in their namespace that is to have one."""

    on_report: Callable[[RunKey], None] | None = None
    """Called after each report; the pool controller looks for announced programs."""

    on_news: Callable[[RunKey], None] | None = None
    """Called after a report that is news, and after any when `FIGURES_SECONDS` have passed; wakes the run."""

    _of_pool: dict[tuple[str, str], set[RunKey]] = field(default_factory=dict, init=False)
    """Runs of the two above by namespace and pool. Every pass over a pool looks at its own, not at all runs."""

    _with_head: set[RunKey] = field(default_factory=set, init=False)
    """Runs whose live attempt's head was seen."""

    def post(
        self,
        key: RunKey,
        *,
        run_uid: str,
        ordinal: int,
        reply: ProgressReply,
        pool: str | None,
        head_uid: str | None = None,
        at: float = 0.0,
    ) -> None:
        """Set what the live attempt of a run is answered. A new ordinal drops the old attempt's report."""
        old = self.entries.get(key)
        self.withdraw(key)
        new = self.entries[key] = RunEntry(reply, ordinal, run_uid, pool, head_uid, posted_at=at)
        self._note(key, pool)
        if head_uid is not None:
            self._with_head.add(key)
        if old and (old.run_uid, old.ordinal) == (run_uid, ordinal):
            new.heartbeat, new.told_at, new.posted_at = old.heartbeat, old.told_at, old.posted_at

    def withdraw(self, key: RunKey) -> None:
        """The run has no live attempt (any more)."""
        entry, waited_for = self.entries.pop(key, None), self.waiting.pop(key, None)
        pool = entry.pool if entry else waited_for
        if pool is not None:
            runs = self._of_pool[key.namespace, pool]
            runs.remove(key)
            if not runs:
                del self._of_pool[key.namespace, pool]
        self._with_head.discard(key)

    def wait(self, key: RunKey, pool: str) -> None:
        """The run has no live attempt, and waits until a judge of the pool is ready."""
        self.withdraw(key)
        self.waiting[key] = pool
        self._note(key, pool)

    def _note(self, key: RunKey, pool: str | None) -> None:
        if pool is not None:
            self._of_pool.setdefault((key.namespace, pool), set()).add(key)

    def receive(self, key: RunKey, heartbeat: Heartbeat) -> ProgressReply | None:
        """Take a report and return the answer, None if the run has not been planned yet (answer 503)."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        if heartbeat.report.ordinal != entry.ordinal:
            return ProgressReply(desired=Desired.DRAIN, deadline_seconds=0)
        if self.last_heard is not None and self.last_heard[0] != key:
            self.other_heard = self.last_heard
        self.last_heard = (key, heartbeat.received_at)
        before = entry.heartbeat
        if is_overtaken(before, heartbeat):
            return entry.reply
        if before and before.pod_uid == heartbeat.pod_uid and not shows_life(before.report, heartbeat.report):
            entry.heartbeat = replace(heartbeat, alive_at=before.alive_at)
        else:
            entry.heartbeat = replace(heartbeat, alive_at=heartbeat.received_at)
        if self.on_report is not None:
            self.on_report(key)
        if is_news(before, heartbeat) or heartbeat.received_at >= entry.told_at + FIGURES_SECONDS:
            entry.told_at = heartbeat.received_at
            if self.on_news is not None:
                self.on_news(key)
        return entry.reply

    def heard(self, key: RunKey, since: float) -> float | None:
        """When a report of another run than this one last came, `since` (this process leads) if none did.

        None where no other attempt runs, so that silence of all would mean no more than that of one. One that waits in
        its queue says nothing by being silent.
        """
        if len(self._with_head) == (key in self._with_head):
            return None
        last = self.last_heard if self.last_heard is None or self.last_heard[0] != key else self.other_heard
        return since if last is None else max(last[1], since)

    def heartbeat(self, key: RunKey, ordinal: int) -> Heartbeat | None:
        """Newest report of this attempt."""
        entry = self.entries.get(key)
        return entry.heartbeat if entry and entry.ordinal == ordinal else None

    def listening_since(self, key: RunKey, ordinal: int) -> float | None:
        """Since when this attempt's reports are taken; None: they are not yet, and its silence means nothing."""
        entry = self.entries.get(key)
        return entry.posted_at if entry and entry.ordinal == ordinal else None

    def expected_submissions(self, namespace: str, pool: str, now: float) -> int:
        """Programs announced to a pool whose time has not passed yet, summed over its runs."""
        total = 0
        for key in self._of_pool.get((namespace, pool), ()):
            heartbeat = self.entries[key].heartbeat if key in self.entries else None
            expected = heartbeat.report.expected_submissions if heartbeat else None
            if heartbeat and expected and now <= heartbeat.received_at + expected.within_seconds:
                total += expected.count
        return total

    def runs_at(self, namespace: str, pool: str) -> int:
        """Runs that want a judge of this pool, whatever they have announced: a live attempt's head was seen, or they
        wait for one."""
        return sum(key in self._with_head or key in self.waiting for key in self._of_pool.get((namespace, pool), ()))
