"""Why an attempt failed, from evidence, and what follows.

Evidence, in order: the operator's own verdict (a stall, a deadline), the trainer's exit.json, then the pods
(preemption, lost nodes, memory), then the job's own message. A RayJob's status has no exit code and goes on saying
RUNNING after its head is gone, so it alone is never believed. What was seen of a pod is kept in the attempt, because
the pod itself is replaced or deleted soon after.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from deepcoder_contracts.api.attempt_status import AttemptStatus, Outcome
from deepcoder_contracts.api.failure import FailureAction, FailurePolicy, FailureReason
from deepcoder_contracts.exit import ExitCode, ExitRecord
from deepcoder_operator.domain.world import PodView, RayJobView

_PREEMPTING = frozenset({"PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet"})
_OWN_LIMIT = re.compile(r"exceeds the (total )?limit|exceeded its local ephemeral storage limit")
"""What a kubelet says where it evicts a pod for more storage than its own template allows, whatever room the node has:
the next pod fills it just so, and a retry that does not count would never end."""
_NODE_GONE = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})
SILENT_SECONDS = 15.0
"""Three heartbeats: whoever is not heard for so long while its node is not reached is lost too."""
TAINTED_SECONDS = 60.0
"""The same where only a taint says that the node is lost: it is put on nodes that live, too, and a trainer that saves
may be silent for a while."""
_OWN_VERDICTS = frozenset(
    {
        FailureReason.STALLED,
        FailureReason.DEADLINE_EXCEEDED,
        FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED,
        FailureReason.SANDBOX_UNAVAILABLE,
    }
)
"""Reasons for which the operator itself gives an attempt up. How the trainer leaves is then its answer to that."""
_EXIT_REASONS = {
    "OutOfMemory": FailureReason.OUT_OF_MEMORY,
    "SandboxUnavailable": FailureReason.SANDBOX_UNAVAILABLE,
    "Communication": FailureReason.COMMUNICATION,
    "Stalled": FailureReason.STALLED,
}
_COMMUNICATION = re.compile(r"\bNCCL\b|ncclInternalError|ProcessGroup\w+ .*timed? ?out|DistBackendError", re.IGNORECASE)
_MEMORY = re.compile(r"OutOfMemory|out of memory|OOMKilled", re.IGNORECASE)

_EVICTED = "was evicted"
_POD_FAILURES = (
    FailureReason.PREEMPTED,
    FailureReason.NODE_LOST,
    FailureReason.OUT_OF_MEMORY,
    FailureReason.APPLICATION,
)
"""What a pod can have failed of, what says most first."""


@dataclass(frozen=True)
class Failure:
    """What an attempt failed of."""

    reason: FailureReason
    evidence: str
    """What the classification rests on, for people."""
    exit_code: int | None = None


def pod_failure(pods: Iterable[PodView]) -> Failure | None:
    """The weightiest failure that an attempt's pods show, None if they show none."""
    found = [f for p in pods if (f := _one_pod(p))]
    return min(found, key=lambda f: _POD_FAILURES.index(f.reason), default=None)


def _one_pod(pod: PodView) -> Failure | None:
    where = f"pod {pod.name}"
    if pod.reason == "Evicted" and _OWN_LIMIT.search(pod.message):
        return Failure(FailureReason.APPLICATION, f"{where} {_EVICTED}: {pod.message.strip()}")
    if pod.reason == "Evicted":
        memory = "memory" in pod.message
        reason = FailureReason.OUT_OF_MEMORY if memory else FailureReason.PREEMPTED
        return Failure(reason, f"{where} {_EVICTED}: {pod.message}")
    if pod.terminated == "OOMKilled":
        return Failure(FailureReason.OUT_OF_MEMORY, f"{where} was killed for memory (OOMKilled)")
    if pod.disruption in _PREEMPTING:
        return Failure(FailureReason.PREEMPTED, f"{where} was disrupted: {pod.disruption}")
    if lost_its_node(pod):
        return Failure(FailureReason.NODE_LOST, f"{where} lost its node: {pod.disruption or pod.reason}")
    return None


def lost_its_node(pod: PodView) -> bool:
    """Whether a pod's node was given up, or is no more."""
    return pod.disruption in _NODE_GONE or pod.reason == "NodeLost"


def head_failure(attempt: AttemptStatus, head: PodView | None) -> Failure | None:
    """Whether the head that is the attempt is gone, another, restarted or ended."""
    if attempt.head_uid is None:
        return None
    if head is None:
        return Failure(FailureReason.HEAD_LOST, f"head pod {attempt.head_pod} is gone")
    if head.uid != attempt.head_uid:
        return Failure(FailureReason.HEAD_LOST, f"head pod {attempt.head_pod} was replaced by {head.name}")
    if head.restarts:
        return Failure(FailureReason.HEAD_LOST, f"container of head pod {head.name} was restarted")
    if head.phase in ("Failed", "Succeeded"):
        code = f" with exit code {head.exit_code}" if head.exit_code is not None else ""
        return Failure(FailureReason.HEAD_LOST, f"head pod {head.name} ended{code} {head.terminated}".rstrip())
    return None


def lost_after(head: PodView) -> float | None:
    """After how many seconds of silence a head is lost with its node: then nothing saves, and nothing ends the pod.

    None where nobody says that its node is. That is said of a pod on a node that lives and was tainted, too; but that
    one's trainer is heard until it has left.
    """
    if not head.deleting or not lost_its_node(head):
        return None
    return SILENT_SECONDS if head.unreachable or head.reason == "NodeLost" else TAINTED_SECONDS


def head_leaves(attempt: AttemptStatus, head: PodView | None) -> bool:
    """Whether the head that is the attempt is being deleted, by whomever: until it is gone its trainer saves."""
    return head is not None and head.uid == attempt.head_uid and head.deleting


def job_failure(job: RayJobView) -> Failure | None:
    """Whether the RayJob says that it failed."""
    text = f"RayJob {job.name}: {job.reason or job.job_status}: {job.message}".rstrip(": ")
    if job.deployment_status == "ValidationFailed":
        return Failure(FailureReason.VALIDATION_FAILED, text)
    if job.job_status not in ("FAILED", "STOPPED") and job.deployment_status != "Failed":
        return None
    if _COMMUNICATION.search(job.message):
        return Failure(FailureReason.COMMUNICATION, text)
    if _MEMORY.search(job.message):
        return Failure(FailureReason.OUT_OF_MEMORY, text)
    return Failure(FailureReason.APPLICATION, text)


def refine(attempt: AttemptStatus, exit_record: ExitRecord | None) -> Failure:
    """The final word on a failed attempt: its exit.json over what was seen from outside.

    But not over the operator's own verdict: an attempt that it gave up is told to leave and answers with 75, which
    would otherwise pass for a preemption and be retried for ever. Nor do rules about exit codes mean that answer.
    """
    seen = Failure(attempt.reason or FailureReason.UNKNOWN, attempt.evidence or "nothing was seen")
    if exit_record is None:
        return seen
    field = f" (field {exit_record.field})" if exit_record.field else ""
    text = f"exit.json: code {exit_record.code}, {exit_record.reason}: {exit_record.message}{field}".rstrip(": ")
    if exit_record.code == ExitCode.BAD_CONFIG:
        return Failure(FailureReason.BAD_CONFIG, text, exit_record.code)
    if seen.reason in _OWN_VERDICTS:
        return Failure(seen.reason, f"{seen.evidence}; {text}")
    if exit_record.reason in _EXIT_REASONS:
        return Failure(_EXIT_REASONS[exit_record.reason], text, exit_record.code)
    if exit_record.code == ExitCode.DRAINED:
        return Failure(FailureReason.PREEMPTED, f"{text}; stopped by its node or queue", exit_record.code)
    if exit_record.code == ExitCode.DONE and attempt.outcome is Outcome.FAILED:
        return Failure(seen.reason, f"{seen.evidence}; {text}", exit_record.code)
    outside = (
        FailureReason.PREEMPTED,
        FailureReason.NODE_LOST,
        FailureReason.OUT_OF_MEMORY,
        FailureReason.COMMUNICATION,
    )
    if seen.reason in outside or _EVICTED in seen.evidence:  # of which the trainer that meets the loss knows nothing
        text = f"{text}; {seen.evidence}"
    reason = seen.reason if seen.reason in outside else FailureReason.APPLICATION
    return Failure(reason, text, exit_record.code)


_DEFAULT_ACTIONS = {
    FailureReason.BAD_CONFIG: FailureAction.FAIL_RUN,
    FailureReason.VALIDATION_FAILED: FailureAction.FAIL_RUN,
    FailureReason.DEADLINE_EXCEEDED: FailureAction.FAIL_RUN,
}


def decide(policy: FailurePolicy, failure: Failure, *, free: bool) -> tuple[FailureAction, str]:
    """What follows, and which rule says so. A bad configuration is never retried, whatever the rules say.

    Nor does a preemption count, or what is `free` for another reason.
    """
    action, rule = _asked_for(policy, failure)
    free = free or failure.reason is FailureReason.PREEMPTED
    return (FailureAction.RETRY_IGNORE_LIMIT if free and action is FailureAction.RETRY else action), rule


def _asked_for(policy: FailurePolicy, failure: Failure) -> tuple[FailureAction, str]:
    if failure.reason is not FailureReason.BAD_CONFIG:
        for rule in policy.rules:
            reason_fits = not rule.on_reasons or failure.reason in rule.on_reasons
            code_fits = not rule.on_exit_codes or failure.exit_code in rule.on_exit_codes
            if reason_fits and code_fits:
                return rule.action, f"rule {rule.name}"
    return _DEFAULT_ACTIONS.get(failure.reason, FailureAction.RETRY), "default"


def backoff_seconds(policy: FailurePolicy, failures_in_row: int) -> float:
    """Pause after this many failures in a row (1 or more): doubled with each, bounded."""
    doublings = min(max(failures_in_row - 1, 0), 30)
    return float(min(policy.backoff.initial_seconds * 2**doublings, policy.backoff.max_seconds))
