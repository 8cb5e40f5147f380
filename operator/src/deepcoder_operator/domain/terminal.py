"""The final states of a run. After one, the operator never creates child objects again; only a new run can continue."""

from __future__ import annotations

from deepcoder_contracts.api.condition import MAX_MESSAGE, ConditionStatus
from deepcoder_contracts.api.run_status import RunStatus
from deepcoder_operator.domain.conditions import is_true
from deepcoder_operator.domain.draft import DeleteRun, Draft, fitted


def is_terminal(status: RunStatus) -> bool:
    """Whether the run has completed or failed for good."""
    return is_true(status.conditions, "Complete") or is_true(status.conditions, "Failed")


def complete_run(draft: Draft) -> None:
    """Complete the run, because all stages are passed."""
    draft.update(completion_time=draft.now, backoff=None)
    draft.condition("Complete", True, "AllStagesPassed", "all stages are passed")
    draft.condition("Failed", ConditionStatus.FALSE, "Completed")
    draft.progressing(False, "Completed", "all stages are passed")
    draft.event("Completed", "all stages are passed")


def fail_run(draft: Draft, reason: str, message: str) -> None:
    """Fail the run. The message says how to continue."""
    latest = draft.status.latest_checkpoint
    forward = (
        f"To continue, make a new run with spec.from: {{uri: {latest.uri}, digest: '{latest.digest}'}}"
        if latest
        else "No checkpoint was made; fix the cause and make a new run"
    )
    draft.update(completion_time=draft.now, backoff=None, attempt=None)
    draft.condition("Failed", True, reason, fitted(message, f". {forward}", MAX_MESSAGE))
    draft.condition("Complete", ConditionStatus.FALSE, "Failed")
    draft.progressing(False, reason, message)
    draft.event("Failed", fitted(message, f". {forward}"), warning=True)


def expire(draft: Draft) -> None:
    """Delete a finished run when its time is up."""
    ttl, finished = draft.run.spec.cleanup.ttl_seconds_after_finished, draft.status.completion_time
    if ttl is not None and finished is not None and draft.due(finished, ttl):
        draft.do(DeleteRun())
