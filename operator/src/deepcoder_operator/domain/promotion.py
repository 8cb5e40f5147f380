"""The step from a finished stage to the next: the gate, what happens if it is unmet, and holds.

The trainer's verdict is not trusted: its values are compared with the spec's bounds again.
"""

from __future__ import annotations

from collections.abc import Mapping

from deepcoder_contracts.api.run_status import CurrentStage, StagePhase
from deepcoder_contracts.gate import Otherwise, PromoteWhen, recheck_gate
from deepcoder_contracts.stage import StageType
from deepcoder_operator.domain.draft import Draft
from deepcoder_operator.domain.numbers import measurements
from deepcoder_operator.domain.terminal import complete_run, fail_run
from deepcoder_operator.domain.world import StoredStage

_MOST = 64
"""Largest number of results in a status."""


def promote(draft: Draft, index: int, stored: StoredStage) -> None:
    """Pass, hold or fail a stage that has finished its work."""
    stage = draft.stage(index)
    gate = stage.promote_when
    if stage.type is StageType.EVALUATE:
        values = dict(stored.metrics or {})
    else:
        values = dict(stored.gate.values) if stored.gate else {}
    shown = values if stage.type is StageType.EVALUATE else values | dict(stored.metrics or {})
    met = recheck_gate(gate, values) if gate else None
    draft.update_stage(index, gate_met=met, results=measurements(_foremost(shown, gate)))
    if gate is not None and not met:
        got = {c.metric: f"{values[c.metric]:g}" if c.metric in values else "no value" for c in gate.all}
        bounds = ", ".join(f"{c.metric} {c.op} {c.value:g}: {got[c.metric]}" for c in gate.all)
        if gate.otherwise is Otherwise.FAIL:
            draft.update_stage(
                index, phase=StagePhase.FAILED, completion_time=draft.now, message=f"gate unmet: {bounds}"
            )
            fail_run(draft, "GateUnmet", f"stage {stage.name} ended with its gate unmet ({bounds})")
            return
        if gate.otherwise is Otherwise.HOLD:
            hold(draft, index, f"its gate is unmet ({bounds})")
            return
        draft.event(
            "GateUnmet", f"stage {stage.name} passes with its gate unmet ({bounds}), because otherwise is Promote"
        )
    if stage.hold:
        hold(draft, index, "hold is set")
        return
    pass_stage(draft, index)


def _foremost(figures: Mapping[str, float], gate: PromoteWhen | None) -> list[tuple[str, float]]:
    """Select as many figures as fit into a status: the gate's metrics, then evaluation results, then the rest."""
    asked = {c.metric for c in gate.all} if gate else set()
    results = ("/pass_at_1", "/rating")
    names = sorted(figures, key=lambda name: (name not in asked, not name.endswith(results), name))
    return [(name, figures[name]) for name in names[:_MOST]]


def hold(draft: Draft, index: int, why: str) -> None:
    """Wait for approval, unless it has been given."""
    name = draft.stage(index).name
    draft.update_stage(index, phase=StagePhase.HELD, message=why)
    if name not in draft.run.spec.approved_stages:
        draft.event("Held", f"stage {name} is held, {why}; release it with {release_command(draft, name)}")
    release_or_wait(draft)


def release_or_wait(draft: Draft) -> None:
    """Pass the held stage if it is approved. Otherwise report how to release it."""
    index = draft.status.stage_index
    entry = draft.status.stages[index]
    if entry.name in draft.run.spec.approved_stages:
        draft.event("Released", f"stage {entry.name} is approved")
        pass_stage(draft, index)
        return
    draft.progressing(
        False, "Held", f"stage {entry.name}: {entry.message}; release it with {release_command(draft, entry.name)}"
    )


def release_command(draft: Draft, stage: str) -> str:
    """Return the command that releases a held stage."""
    meta = draft.run.metadata
    operation = "/spec/approvedStages/-" if draft.run.spec.approved_stages else "/spec/approvedStages"
    value = f'"{stage}"' if draft.run.spec.approved_stages else f'["{stage}"]'
    return (
        f"kubectl -n {meta.namespace} patch dcr {meta.name} --type=json "
        f'-p \'[{{"op":"add","path":"{operation}","value":{value}}}]\''
    )


def pass_stage(draft: Draft, index: int) -> None:
    """Go on to the next stage, or complete."""
    entry = draft.update_stage(index, phase=StagePhase.COMPLETE, completion_time=draft.now)
    draft.event("StagePassed", f"stage {entry.name} is passed at step {entry.step}")
    following = index + 1
    if following >= len(draft.run.spec.stages):
        complete_run(draft)
        return
    stage = draft.stage(following)
    draft.update(
        progress=None,
        current_stage=CurrentStage(
            name=stage.name, index=following, context_tokens=stage.context_tokens, ordinal=draft.status.ordinal
        ),
    )
    draft.progressing(True, "StagePassed", f"stage {entry.name} is passed, {stage.name} is next")
    draft.look_again(0)
