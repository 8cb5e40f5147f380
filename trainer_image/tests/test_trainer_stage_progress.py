"""What follows from a stage's steps alone: when to evaluate, when to save, when it is over."""

from __future__ import annotations

import pytest
from controller_world import PROMPTS, stage_config

from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.pipeline.stage_progress import StageProgress

DATASETS = {"datasets": [{"name": "held", "uri": "/h"}]}


def course(steps: int, *, evaluated: bool = False, **stage: object) -> StageProgress:
    made = StageProgress(stage_config(6, every=2, **stage))
    for step in range(1, steps + 1):
        made.trained(step, {"reward_mean": step / 10, "loss": 1.0}, {"samples": 3.0})
        if evaluated and made.evaluation_owed:
            made.evaluated({"eval/held/pass_at_1": step / 10})
    return made


def test_a_stage_without_evaluation_owes_none_and_ends_at_its_last_step() -> None:
    assert [course(n).over for n in range(7)] == [False] * 6 + [True]
    assert [course(n).save_due for n in range(1, 7)] == [False, True, False, True, False, True]
    assert not any(course(n).evaluation_owed for n in range(7))


def test_by_default_evaluation_is_owed_at_the_end_only_and_the_stage_is_not_over_before() -> None:
    assert [course(n, evaluate=DATASETS).evaluation_owed for n in range(7)] == [False] * 6 + [True]
    assert not course(6, evaluate=DATASETS).over
    assert course(6, evaluate=DATASETS, evaluated=True).over


def test_an_evaluation_is_owed_until_it_was_done_after_a_resume_as_well() -> None:
    evaluate = {**DATASETS, "everySteps": 2}
    left = course(4, evaluate=evaluate)
    assert left.evaluation_owed
    again = StageProgress(stage_config(6, every=2, evaluate=evaluate), left.state())
    assert again.evaluation_owed
    again.evaluated({"eval/held/pass_at_1": 0.5})
    assert not StageProgress(stage_config(6, every=2, evaluate=evaluate), again.state()).evaluation_owed


def test_a_state_holds_all_that_a_resumed_run_decides_by() -> None:
    before = PipelineState(0, 7, 7, 21, counters={"samples": 5.0})
    made = StageProgress(stage_config(6, every=2), before)
    made.trained(1, {"reward_mean": 0.5, "loss": 1.0}, {"samples": 3.0})
    state = made.state()
    assert state == PipelineState(
        1,
        8,
        8,
        0,
        trained_groups=8 * PROMPTS,
        history={"step": (1.0,), "reward_mean": (0.5,)},
        counters={"samples": 8.0},
    )
    again = StageProgress(stage_config(6, every=2), state, made.metrics)
    assert again.origin == 0
    assert (again.base, again.version, again.totals, again.metrics) == (7, 8, {"run_samples": 8.0}, made.metrics)


def test_a_checkpoint_from_before_stages_had_batches_is_counted_in_the_stages_own() -> None:
    assert StageProgress(stage_config(6), PipelineState(2, 7, 7, 7 * PROMPTS)).origin == 0
    ours = StageProgress(stage_config(6), PipelineState(2, 7, 7, 50, trained_groups=50))
    assert ours.origin == 50 - 7 * PROMPTS
    assert ours.state().trained_groups == 50


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_gate_is_not_judged_while_an_evaluation_is_owed(evaluated: bool) -> None:
    gate = {"all": [{"metric": "reward_mean", "op": "Ge", "value": 0.3}]}
    made = course(3, evaluate=DATASETS, promoteWhen=gate, evaluated=evaluated)
    assert made.evaluation_owed is not evaluated
    assert made.over is evaluated
    assert (made.gate is not None) is evaluated


def test_history_holds_what_gates_look_at_and_nothing_else() -> None:
    made = course(2, evaluate={**DATASETS, "everySteps": 2}, evaluated=True)
    assert made.history == {
        "step": (1.0, 2.0),
        "reward_mean": (0.1, 0.2),
        "eval/held/pass_at_1": (0.2,),
        "evaluated": (2.0,),
    }
