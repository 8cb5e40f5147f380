"""The end of an attempt as seen from outside: how it is recorded, and how long its RayJob and pods are waited for.

If KubeRay or a kubelet does not act, the run does not wait forever. At the deadline an event reports what is left, and
garbage collection gets the rest, so that the run can continue, or be deleted, without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from deepcoder_contracts.api.attempt_status import AttemptState, AttemptStatus, Outcome
from deepcoder_contracts.api.failure import FailureReason
from deepcoder_operator.domain.bounds import END_SECONDS, LEAVE_SECONDS, POLL_SECONDS, POST_MORTEM_SECONDS
from deepcoder_operator.domain.classify import Failure
from deepcoder_operator.domain.draft import DeleteRayJob, Draft, EndPods, SavePostMortem
from deepcoder_operator.domain.world import PodView, World


def end_attempt(draft: Draft, outcome: Outcome, failure: Failure | None = None) -> None:
    """Record that the attempt is over as seen from outside, save a post-mortem if it failed, and delete its RayJob."""
    attempt = draft.attempt
    worse = failure and (
        attempt.reason is None or failure.reason not in (FailureReason.HEAD_LOST, FailureReason.APPLICATION)
    )
    evidence = [e for e in (attempt.evidence, failure.evidence if failure else None) if e]
    saves = failure is None or failure.reason is not FailureReason.NODE_LOST
    bound = timedelta(seconds=LEAVE_SECONDS + (draft.run.spec.checkpoint.drain_seconds if saves else 0))
    ended = draft.update_attempt(
        state=AttemptState.LEAVING,
        ended_time=draft.now,
        outcome=outcome,
        reason=failure.reason if failure and worse else attempt.reason,
        evidence="; ".join(dict.fromkeys(evidence))[:1000] or None,
        drain_deadline=draft.now + bound,
    )
    if attempt.running_time is not None:
        ran = int((draft.now - attempt.running_time).total_seconds())
        entry = draft.status.stages[attempt.stage_index]
        draft.update_stage(attempt.stage_index, active_seconds=entry.active_seconds + ran)
    if outcome is Outcome.FAILED and failure:
        draft.event("AttemptFailed", f"attempt {attempt.ordinal}: {failure.reason}: {failure.evidence}", warning=True)
    draft.progressing(True, "Leaving", _ended(ended))
    if attempt.uid:
        _save_post_mortem(draft)
        draft.do(DeleteRayJob(attempt.name, attempt.uid))
    draft.look_again(0)


def is_over(attempt: AttemptStatus, run_uid: str, world: World, now: datetime) -> bool:
    """Whether the wait for a leaving attempt is over: its RayJob and pods are gone, or their time is up."""
    late = attempt.drain_deadline is not None and now >= attempt.drain_deadline
    return late or (world.rayjob_of(run_uid) is None and not world.pods_of(attempt.ordinal))


def clean_up_attempt(draft: Draft, world: World) -> None:
    """End what is left of a leaving attempt, and report it."""
    attempt = draft.attempt
    job, pods = world.rayjob_of(draft.run.metadata.uid), world.pods_of(attempt.ordinal)
    if job is None and not pods:
        return
    late = attempt.drain_deadline is not None and draft.due(attempt.drain_deadline, 0)
    if job is not None and not job.deleting:
        if attempt.ended_time is not None and not draft.due(attempt.ended_time, POST_MORTEM_SECONDS):
            _save_post_mortem(draft)
        draft.do(DeleteRayJob(job.name, job.uid))
    if job is None or late:
        end_pods(draft, pods)
    left = ", ".join(([f"RayJob {job.name}"] if job is not None else []) + [f"pod {p.name}" for p in pods[:5]])
    if not late:
        draft.progressing(True, "Leaving", f"{_ended(attempt)}; still left: {left}")
        draft.look_again(POLL_SECONDS)
    elif attempt.left_behind_time is None:  # once: the run may wait long for storage after that
        draft.update_attempt(left_behind_time=draft.now)
        text = f"the run continues although these did not end (check KubeRay and the nodes): {left}"
        draft.event("LeftBehind", text, warning=True)


def end_pods(draft: Draft, pods: Iterable[PodView]) -> None:
    """Shorten the grace period of the pods of an attempt that is over."""
    slow = tuple((p.name, p.uid) for p in pods if not p.deleting or (p.grace or 0) > END_SECONDS)
    if slow:
        draft.do(EndPods(slow))


def _ended(attempt: AttemptStatus) -> str:
    failed = attempt.outcome is Outcome.FAILED and attempt.reason is not None
    why = f" ({attempt.reason}: {attempt.evidence})" if failed else ""
    return f"attempt {attempt.ordinal} has ended{why}"


def _save_post_mortem(draft: Draft) -> None:
    """Save a post-mortem if the attempt's end needs an explanation: not after success or a completed drain."""
    attempt = draft.attempt
    unproven = attempt.outcome is Outcome.SUCCEEDED and attempt.reason is FailureReason.MANIFEST_MISSING
    if unproven or attempt.outcome in (Outcome.FAILED, Outcome.DRAIN_TIMED_OUT):
        draft.do(SavePostMortem(attempt))
