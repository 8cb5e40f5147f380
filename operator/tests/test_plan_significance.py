"""Which changes of a status are written at once."""

from __future__ import annotations

from typing import Any

import pytest
from plan_values import checkpoint
from plan_world import START, running

from deepcoder_cli import view
from deepcoder_contracts.api.run_status import RunStatus
from deepcoder_operator.domain.conditions import set_condition
from deepcoder_operator.domain.significance import FIGURES_SECONDS, TIMES_SECONDS, worth_writing

STATUS = running().run.status
assert STATUS.attempt is not None


def with_condition(reason: str, message: str, *, going: bool = True) -> RunStatus:
    stamp = STATUS.conditions[0].last_transition_time
    return STATUS.model_copy(
        update={
            "conditions": set_condition(
                STATUS.conditions, "Progressing", going, reason, message, generation=1, now=stamp
            )
        }
    )


def with_stage(**changes: Any) -> RunStatus:
    return STATUS.model_copy(update={"stages": [STATUS.stages[0].model_copy(update=changes), *STATUS.stages[1:]]})


FIGURES = {
    "message": with_condition("Running", "another wording"),
    "step": with_stage(step=7, reward="0.5"),
    "sandbox": STATUS.model_copy(update={"usage": STATUS.usage.model_copy(update={"sandbox_seconds": "60"})}),
}
DECISIONS = {
    "reason": with_condition("Draining", ""),
    "status": with_condition("Running", "", going=False),
    "ordinal": STATUS.model_copy(update={"ordinal": STATUS.ordinal + 1}),
    "attempt": STATUS.model_copy(update={"attempt": None}),
    "failures": with_stage(failures=1),
    "generation": STATUS.model_copy(update={"observed_generation": 2}),
    "checkpoint": STATUS.model_copy(update={"latest_checkpoint": checkpoint("short", 5, 1, at=START)}),
}


@pytest.mark.parametrize("change", FIGURES)
def test_figures_and_wording_wait_for_the_next_write(change: str) -> None:
    new = FIGURES[change]
    assert new != STATUS
    assert not worth_writing(STATUS, new, FIGURES_SECONDS - 1)
    assert worth_writing(STATUS, new, FIGURES_SECONDS)
    assert worth_writing(STATUS, new, None)


def test_time_of_a_report_without_another_step_is_written_once_a_minute() -> None:
    """Steps take minutes, reports seconds."""
    cluster = running()
    cluster.report(3, reward_mean=0.5)
    cluster.step()
    before = cluster.run.status
    cluster.advance(20)
    cluster.report(3, reward_mean=0.5)
    again = cluster.decide().status
    assert again.attempt is not None
    assert again.attempt.heartbeat_time == cluster.now
    assert not worth_writing(before, again, TIMES_SECONDS - 1)
    assert worth_writing(before, again, TIMES_SECONDS)
    cluster.report(4, reward_mean=0.5)
    stepped = cluster.decide().status
    assert not worth_writing(before, stepped, FIGURES_SECONDS - 1)
    assert worth_writing(before, stepped, FIGURES_SECONDS)


def test_trainer_that_reports_does_not_pass_for_silent() -> None:
    """A pass is made for a report each 15 s; the second one after the minute writes at the latest."""
    assert view.SILENT_SECONDS > TIMES_SECONDS + 2 * FIGURES_SECONDS


@pytest.mark.parametrize("change", DECISIONS)
def test_what_decisions_rest_on_is_written_at_once(change: str) -> None:
    assert worth_writing(STATUS, DECISIONS[change], 0.0)


def test_equal_status_is_never_written() -> None:
    assert not worth_writing(STATUS, RunStatus.model_validate(STATUS.to_wire()), None)


def test_report_that_is_written_late_keeps_the_time_at_which_it_came() -> None:
    """Otherwise a trainer that has just gone silent would seem to have reported a minute later."""
    cluster = running()
    cluster.report(3, reward_mean=0.5)
    cluster.step()
    cluster.advance(16)
    cluster.report(3, reward_mean=0.5)
    came = cluster.now
    cluster.advance(44)
    written = cluster.decide().status
    assert written.attempt is not None
    assert written.progress is not None
    assert written.attempt.heartbeat_time == came
    assert written.progress.time == came
