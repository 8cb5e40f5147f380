"""Gates: what is met, what is not yet, and that the recheck of a record agrees with the evaluation."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deepcoder_contracts.gate import PromoteWhen, evaluate_gate, recheck_gate


def gate(metric: str, op: str, value: float, window: int = 1) -> PromoteWhen:
    return PromoteWhen.model_validate({"all": [{"metric": metric, "op": op, "value": value, "window": window}]})


def test_mean_over_the_window_decides_not_the_last_value() -> None:
    record = evaluate_gate(gate("reward_mean", "Ge", 0.5, window=4), {"reward_mean": [0.0, 0.4, 0.4, 0.4, 0.9]})
    assert record.met
    assert record.values["reward_mean"] == pytest.approx(0.525)


@pytest.mark.parametrize(("op", "met"), [("Ge", "=>"), ("Gt", ">"), ("Le", "<="), ("Lt", "<")])
def test_the_bound_itself_meets_at_least_and_at_most(op: str, met: str) -> None:
    for name, value in (("<", 0.25), ("=", 0.5), (">", 0.75)):
        record = evaluate_gate(gate("reward_mean", op, 0.5), {"reward_mean": [value]})
        assert record.met is (name in met)


def test_too_few_values_leave_a_condition_unmet() -> None:
    record = evaluate_gate(gate("reward_mean", "Ge", 0.1, window=3), {"reward_mean": [1.0, 1.0]})
    assert not record.met
    assert record.values == {}


def test_a_gate_on_an_evaluation_is_unmet_before_the_first_evaluation() -> None:
    assert not evaluate_gate(gate("eval/heldout/pass_at_1", "Ge", 0.0), {}).met


def test_a_gate_may_be_on_a_rating() -> None:
    assert evaluate_gate(gate("eval/cf/rating", "Ge", 1900), {"eval/cf/rating": [1936.0]}).met
    with pytest.raises(ValidationError):
        gate("eval/cf/percentile", "Ge", 90)


def test_plateau_compares_two_neighbouring_windows() -> None:
    rising = {"reward_mean": [0.1, 0.2, 0.3, 0.4]}
    flat = {"reward_mean": [0.4, 0.4, 0.4, 0.4]}
    condition = gate("plateau(reward_mean)", "Le", 0.01, window=2)
    assert not evaluate_gate(condition, rising).met
    assert evaluate_gate(condition, flat).met
    assert evaluate_gate(condition, {"reward_mean": [0.0, 0.1, 0.2, *flat["reward_mean"]]}).met, "of the last values"


def test_an_unknown_metric_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="metric"):
        gate("rewards", "Ge", 0.5)


def test_a_metric_named_twice_is_refused() -> None:
    condition = {"metric": "step", "op": "Ge", "value": 1}
    with pytest.raises(ValidationError, match="twice"):
        PromoteWhen.model_validate({"all": [condition, condition]})


@given(
    st.lists(st.floats(0, 1), max_size=12),
    st.floats(0, 1),
    st.integers(1, 6),
    st.sampled_from(["Ge", "Gt", "Le", "Lt"]),
)
def test_recheck_of_the_record_agrees_with_the_evaluation(
    history: list[float], bound: float, window: int, op: str
) -> None:
    condition = gate("reward_mean", op, bound, window)
    record = evaluate_gate(condition, {"reward_mean": history})
    assert recheck_gate(condition, record.values) == record.met


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("op", ["Ge", "Le"])
def test_a_metric_that_is_no_number_meets_no_gate_and_is_not_recorded(value: float, op: str) -> None:
    record = evaluate_gate(gate("reward_mean", op, 0.5), {"reward_mean": [value]})
    assert (record.met, record.values) == (False, {})
