"""Classifies why an attempt failed, from evidence, and decides what follows.

Evidence, in order of weight: the operator's own verdict (a stall, a deadline), the trainer's exit.json, the pods
(preemption, lost nodes, memory), and the job's message. A RayJob's status has no exit code and stays RUNNING after its
head is gone, so the status alone is never enough. What was seen of a pod is kept in the attempt, because the pod itself
is replaced or deleted soon after. It is forgotten when the attempt has gone on without the pod for long enough, because
it then explains no failure any more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_contracts.api.failure import FailureAction, FailurePolicy, FailureReason
from deepcoder_contracts.exit import ExitCode, ExitRecord
from deepcoder_operator.domain.world import PodView, RayJobView

_PREEMPTING = frozenset({"PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet"})
_OWN_LIMIT = re.compile(r"exceeds the (total )?limit|exceeded its local ephemeral storage limit")
"""The kubelet's message when it evicts a pod because the pod exceeds its own storage limit, even if the node has room.
The next pod would exceed it too, so a retry that does not count would never end."""
_NODE_GONE = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})
SILENT_SECONDS = 15.0
"""Three heartbeats. A trainer that is silent for so long on an unreachable node is lost too."""
TAINTED_SECONDS = 60.0
"""The same if only a taint says that the node is lost. Live nodes can be tainted too, and a trainer that saves may be
silent for a while."""
_OWN_VERDICTS = frozenset(
    {
        FailureReason.STALLED,
        FailureReason.DEADLINE_EXCEEDED,
        FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED,
        FailureReason.SANDBOX_UNAVAILABLE,
    }
)
"""Reasons for which the operator itself gives up an attempt. The trainer's exit is then only a reaction to that."""
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
"""Reasons that pods can show, the most telling first."""


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed."""

    reason: FailureReason
    evidence: str
    """Evidence of the classification, for people."""
    exit_code: int | None = None


def pod_failure(pods: Iterable[PodView]) -> Failure | None:
    """Return the most telling failure that an attempt's pods show, or None."""
    found = [f for p in pods if (f := _one_pod(p))]
    return min(found, key=lambda f: _POD_FAILURES.index(f.reason), default=None)


def survived_loss(step: int, noted: int, off_policy: int) -> bool:
    """Whether an attempt that has reached this step has survived a loss of pods that was noted at step `noted`.

    The next step may have ended unreported, the one after it was under way, and `off_policy` more may have been sampled
    before the loss. The first step after all of these was sampled and trained without the lost pods.
    """
    return step >= noted + off_policy + 3


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
    """Whether the pod's node was given up or no longer exists."""
    return pod.disruption in _NODE_GONE or pod.reason == "NodeLost"


def head_failure(attempt: AttemptStatus, head: PodView | None) -> Failure | None:
    """Return a failure if the attempt's head pod is gone, was replaced or restarted, or has ended."""
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
        # The node's reason, for a pod whose containers may never have run. What `pod_failure` reports is not repeated.
        refused = f": {head.reason}: {head.message}" if head.reason and _one_pod(head) is None else ""
        text = f"head pod {head.name} ended{code} {head.terminated}".rstrip()
        return Failure(FailureReason.HEAD_LOST, f"{text}{refused}")
    return None


def lost_after(head: PodView) -> float | None:
    """Return the seconds of silence after which a head counts as lost with its node, where nothing can save or end it.

    None if nothing says that the node is lost. A pod on a live but tainted node is reported as lost too, but its
    trainer keeps sending heartbeats until it exits.
    """
    if not head.deleting or not lost_its_node(head):
        return None
    return SILENT_SECONDS if head.unreachable or head.reason == "NodeLost" else TAINTED_SECONDS


def head_leaves(attempt: AttemptStatus, head: PodView | None) -> bool:
    """Whether the attempt's head pod is being deleted, by anyone. Its trainer saves until the pod is gone."""
    return head is not None and head.uid == attempt.head_uid and head.deleting


def job_failure(job: RayJobView) -> Failure | None:
    """Return a failure if the RayJob reports one."""
    text = f"RayJob {job.name}: {job.reason or job.job_status}: {job.message}".rstrip(": ")
    if job.deployment_status == "ValidationFailed":
        return Failure(FailureReason.VALIDATION_FAILED, text)
    if job.deployment_status == "Failed" and job.reason == FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED:
        return Failure(FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED, text)  # KubeRay's verdict, while no operator ran
    if job.job_status not in ("FAILED", "STOPPED") and job.deployment_status != "Failed":
        return None
    if _COMMUNICATION.search(job.message):
        return Failure(FailureReason.COMMUNICATION, text)
    if _MEMORY.search(job.message):
        return Failure(FailureReason.OUT_OF_MEMORY, text)
    return Failure(FailureReason.APPLICATION, text)


def refine(attempt: AttemptStatus, exit_record: ExitRecord | None) -> Failure:
    """Return the final classification of a failed attempt. Its exit.json outweighs what was seen from outside.

    It does not outweigh the operator's own verdict. An attempt that the operator gave up is told to stop and exits with
    75, which would otherwise look like a preemption and be retried forever. Rules about exit codes do not apply to that
    exit either.
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
    if exit_record.code == ExitCode.DONE:
        return Failure(seen.reason, f"{seen.evidence}; {text}", exit_record.code)
    outside = (
        FailureReason.PREEMPTED,
        FailureReason.NODE_LOST,
        FailureReason.OUT_OF_MEMORY,
        FailureReason.COMMUNICATION,
    )
    if seen.reason in outside or _EVICTED in seen.evidence:  # the trainer sees only the effect of these, not the cause
        text = f"{text}; {seen.evidence}"
    reason = seen.reason if seen.reason in outside else FailureReason.APPLICATION
    return Failure(reason, text, exit_record.code)


_DEFAULT_ACTIONS = {
    FailureReason.BAD_CONFIG: FailureAction.FAIL_RUN,
    FailureReason.VALIDATION_FAILED: FailureAction.FAIL_RUN,
    FailureReason.DEADLINE_EXCEEDED: FailureAction.FAIL_RUN,
}


def decide(policy: FailurePolicy, failure: Failure, *, free: bool) -> tuple[FailureAction, str]:
    """Return what follows, and the rule that says so. A bad configuration is never retried, whatever the rules say.

    Preemptions do not count against maxAttempts, nor do failures that are `free` for another reason.
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
    """Return the pause after this many failures in a row (1 or more). It doubles with each failure, up to a bound."""
    doublings = min(failures_in_row - 1, 30)
    return float(min(policy.backoff.initial_seconds * 2**doublings, policy.backoff.max_seconds))
