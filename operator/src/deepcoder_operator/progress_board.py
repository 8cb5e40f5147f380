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
"""Shortest time between two status writes that only copy figures from a run's reports. Reports without news therefore
wake their run no more often."""


OVERTAKEN_SECONDS = 60.0
"""If a report was sent up to this long before the known one, it was delayed on its way, for example while its token was
reviewed, and is ignored. If it seems older than that, its sender's clock was set back, and the report is the newest."""


MOST_EXPECTED = 2**53
"""Most programs that count as announced to a pool. A gauge cannot hold every sum, and a pass would fail on it."""

EXPECTED_SECONDS = 3600.0
"""Longest time for which an announcement counts. Each report renews it, so only that of a silent trainer expires."""


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
    """The trainer's report."""

    received_at: float
    """Time of arrival, in seconds since the epoch by the operator's clock, which never goes back."""

    pod_uid: str | None = None
    """UID of the pod that sent the report."""

    alive_at: float | None = None
    """Time of arrival of this pod's last report that `shows_life`. Set by the board."""


def shows_life(before: ProgressReport, report: ProgressReport) -> bool:
    """Whether a report shows that work proceeds: its step differs from `before`, or its phase is not training.

    `before` is the previous report of the same pod. Outside of training any report is enough, because an evaluation may
    take longer than any step. Every report is checked on arrival, because passes and status writes see only some of
    them.
    """
    return report.step != before.step or report.phase is not TrainerPhase.TRAINING


def is_news(before: Heartbeat | None, heartbeat: Heartbeat) -> bool:
    """Whether a report contains more than figures, so that its run should be planned at once."""
    if before is None or before.pod_uid != heartbeat.pod_uid:
        return True
    old, new = before.report, heartbeat.report
    return (old.phase, old.stage, old.latest_checkpoint) != (new.phase, new.stage, new.latest_checkpoint)


def is_overtaken(before: Heartbeat | None, heartbeat: Heartbeat) -> bool:
    """Whether a report was sent before the known report of the same pod, and arrived after it."""
    if before is None or before.pod_uid != heartbeat.pod_uid:
        return False
    return 0 < (before.report.sent_at - heartbeat.report.sent_at).total_seconds() < OVERTAKEN_SECONDS


@dataclass
class RunEntry:
    """What the board holds about one run."""

    reply: ProgressReply
    """Reply to the next report."""

    ordinal: int
    """Number of the live attempt. Other attempts that report are told to drain at once."""

    run_uid: str
    """UID of the run."""

    pool: str | None
    """SandboxPool in the run's namespace that judges for it."""

    head_uid: str | None = None
    """UID of the live attempt's head pod, once it has been seen. Only this pod may then report for the attempt."""

    heartbeat: Heartbeat | None = None
    """Newest report of the live attempt."""

    posted_at: float = 0.0
    """Time since which the attempt's reports are accepted."""

    told_at: float = float("-inf")
    """Time at which a report last woke the run."""


@dataclass
class ProgressBoard:
    """Entries of all runs that have a live attempt. Used from one event loop, so it needs no lock."""

    entries: dict[RunKey, RunEntry] = field(default_factory=dict)
    """Entries of runs with a live attempt."""

    last_heard: tuple[RunKey, float] | None = None
    """Run and time of arrival of the last report of any live attempt."""

    other_heard: tuple[RunKey, float] | None = None
    """The same for the last report from a run other than that one."""

    waiting: dict[RunKey, str] = field(default_factory=dict)
    """Runs that request no GPUs until a judge is ready, and the name of the SandboxPool that each waits for."""

    on_report: Callable[[RunKey], None] | None = None
    """Called after each report. The pool controller looks for announced programs in it."""

    on_news: Callable[[RunKey], None] | None = None
    """Called to wake a run after a report that is news, and after any report once `FIGURES_SECONDS` have passed."""

    _of_pool: dict[tuple[str, str], set[RunKey]] = field(default_factory=dict, init=False)
    """Runs of `entries` and `waiting` by namespace and pool, so that a pass over a pool need not look at all runs."""

    _with_head: set[RunKey] = field(default_factory=set, init=False)
    """Runs whose live attempt has a known head pod."""

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
        """Set the reply to the live attempt of a run. A new ordinal drops the old attempt's report."""
        old = self.entries.get(key)
        self.withdraw(key)
        new = self.entries[key] = RunEntry(reply, ordinal, run_uid, pool, head_uid, posted_at=at)
        self._note(key, pool)
        if head_uid is not None:
            self._with_head.add(key)
        if old and (old.run_uid, old.ordinal) == (run_uid, ordinal):
            new.heartbeat, new.told_at, new.posted_at = old.heartbeat, old.told_at, old.posted_at

    def withdraw(self, key: RunKey) -> None:
        """Remove a run that has no live attempt and waits for no judge."""
        entry, waited_for = self.entries.pop(key, None), self.waiting.pop(key, None)
        pool = entry.pool if entry else waited_for
        if pool is not None:
            runs = self._of_pool[key.namespace, pool]
            runs.remove(key)
            if not runs:
                del self._of_pool[key.namespace, pool]
        self._with_head.discard(key)

    def wait(self, key: RunKey, pool: str) -> None:
        """Record that a run without a live attempt waits until a judge of the pool is ready."""
        self.withdraw(key)
        self.waiting[key] = pool
        self._note(key, pool)

    def _note(self, key: RunKey, pool: str | None) -> None:
        if pool is not None:
            self._of_pool.setdefault((key.namespace, pool), set()).add(key)

    def receive(self, key: RunKey, heartbeat: Heartbeat) -> ProgressReply | None:
        """Store a report and return the reply, or None if the run has not been planned yet (answer 503)."""
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
        """Return the time of the last report from any other run, but at least `since`, when this process began to lead.

        Returns None if no other run has an attempt with a head pod: then silence of the others means nothing, because
        an attempt that waits in its queue does not report.
        """
        if len(self._with_head) == (key in self._with_head):
            return None
        last = self.last_heard if self.last_heard is None or self.last_heard[0] != key else self.other_heard
        return since if last is None else max(last[1], since)

    def heartbeat(self, key: RunKey, ordinal: int) -> Heartbeat | None:
        """Return the newest report of this attempt, or None."""
        entry = self.entries.get(key)
        return entry.heartbeat if entry and entry.ordinal == ordinal else None

    def listening_since(self, key: RunKey, ordinal: int) -> float | None:
        """Return the time since which this attempt's reports are accepted. None if they are not accepted yet, so that
        its silence means nothing."""
        entry = self.entries.get(key)
        return entry.posted_at if entry and entry.ordinal == ordinal else None

    def expected_submissions(self, namespace: str, pool: str, now: float) -> int:
        """Return the number of programs that the pool's runs have announced and that are still expected."""
        total = 0
        for key in self._of_pool.get((namespace, pool), ()):
            heartbeat = self.entries[key].heartbeat if key in self.entries else None
            expected = heartbeat.report.expected_submissions if heartbeat else None
            if heartbeat and expected:
                seconds = min(expected.within_seconds, EXPECTED_SECONDS)
                total += expected.count if now <= heartbeat.received_at + seconds else 0
        return min(total, MOST_EXPECTED)

    def runs_at(self, namespace: str, pool: str) -> int:
        """Return the number of runs that need a judge of this pool: those whose live attempt has a known head pod, and
        those that wait for a judge."""
        return sum(key in self._with_head or key in self.waiting for key in self._of_pool.get((namespace, pool), ()))
