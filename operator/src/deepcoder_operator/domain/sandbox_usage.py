"""Sandbox-seconds: judges of the run's own SandboxPool times seconds, by the minute. Shared pools are left out."""

from __future__ import annotations

from deepcoder_operator.domain.draft import Draft
from deepcoder_operator.domain.numbers import decimal
from deepcoder_operator.domain.terminal import is_terminal
from deepcoder_operator.domain.world import World

SANDBOX_SECONDS = 60.0


def account_sandbox(draft: Draft, world: World) -> None:
    """Add the time since the last count."""
    usage = draft.status.usage
    if draft.run.spec.sandbox.template is None:
        return
    if world.pool is None:  # a new pool may come; the time in between does not count
        if usage.sandbox_time is not None:
            draft.update(usage=usage.model_copy(update={"sandbox_time": None}))
        return
    elapsed = (draft.now - usage.sandbox_time).total_seconds() if usage.sandbox_time else None
    if elapsed is None or elapsed < 0:  # a clock that was set back adds nothing
        draft.update(usage=usage.model_copy(update={"sandbox_time": draft.now}))
    elif elapsed >= SANDBOX_SECONDS and not is_terminal(draft.status):
        total = float(usage.sandbox_seconds) + elapsed * world.pool.replicas
        draft.update(usage=usage.model_copy(update={"sandbox_seconds": decimal(total, 0), "sandbox_time": draft.now}))
