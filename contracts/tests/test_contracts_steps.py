"""Which lines of metrics.jsonl count: those of the weights that training continued from."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from deepcoder_contracts.steps import merge_steps


def lines(steps: Iterable[int], stage: str = "short", time: float = 0.0) -> list[str]:
    about = {"stage": stage, "metrics": {}, "verdicts": {}, "phase_seconds": {}}
    return [json.dumps({**about, "step": n, "time": time + n}) for n in steps]


def merged(*attempts: tuple[int, list[str]]) -> list[tuple[int, int]]:
    """Ordinal and step of what counts."""
    return [(record.ordinal, record.step) for record in merge_steps(attempts)]


@pytest.mark.parametrize("order", [1, -1])
def test_what_a_lost_attempt_trained_beyond_its_checkpoint_counts_for_nothing(order: int) -> None:
    """The second attempt ends at its gate before it has come as far as the first."""
    attempts = [(1, lines(range(1, 138))), (2, lines(range(121, 131)))]
    assert merged(*attempts[::order]) == [(1, n) for n in range(1, 121)] + [(2, n) for n in range(121, 131)]


def test_an_attempt_cuts_off_all_before_it_and_one_without_a_step_none() -> None:
    """The newest checkpoint was damaged for the third, and the fourth has not trained yet."""
    found = merged((1, lines(range(1, 10))), (2, lines(range(8, 15))), (3, lines([5])), (4, ["", '{"stage": "short"']))
    assert found == [(1, 1), (1, 2), (1, 3), (1, 4), (3, 5)]


def test_an_attempt_says_nothing_of_the_steps_of_another_stage() -> None:
    found = merge_steps([(1, lines([1, 2, 3])), (2, lines([1, 2], "long", 10.0))])
    assert [(r.stage, r.step) for r in found] == [("short", 1), ("short", 2), ("short", 3), ("long", 1), ("long", 2)]


def test_lines_out_of_order_cut_off_from_the_earliest() -> None:
    """What is known of an attempt grows: until its first line is there, the lost steps before its second one count."""
    assert merged((1, lines([1, 2, 3, 4])), (2, lines([3]))) == [(1, 1), (1, 2), (2, 3)]
    assert merged((1, lines([1, 2, 3, 4])), (2, lines([3, 2]))) == [(1, 1), (2, 2), (2, 3)]
