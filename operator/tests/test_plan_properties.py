"""Whatever happens, in whatever order, and wherever the operator is killed: the planner's invariants hold.

Hypothesis drives a run through crashes between any two writes, lost and repeated passes, evictions, edits of stages,
deletions and being made again, broken storage, a KubeRay and kubelets that do not act, and clock jumps.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from plan_chaos import Chaos


def chaos(examples: int, steps: int) -> None:
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    run_state_machine_as_test(Chaos, settings=chosen)


def test_invariants_hold_and_runs_converge_through_any_chaos() -> None:
    chaos(100, 40)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_invariants_hold_and_runs_converge_through_long_chaos() -> None:
    chaos(3000, 80)
