"""The number of judges: bounds, monotony, and no shrinking in haste."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcoder_operator.domain.pool_scaling import Load, Recommendation, ScalingLimits, decide, recommend

counts = st.integers(0, 5000)


@st.composite
def limits(draw: st.DrawFn) -> ScalingLimits:
    low = draw(st.integers(0, 50))
    return ScalingLimits(
        min_replicas=low,
        max_replicas=draw(st.integers(max(low, 1), 200)),
        slots_per_pod=draw(st.integers(1, 64)),
        target_queue_per_slot=draw(st.floats(0, 20)),
        target_wait_seconds=draw(st.integers(1, 3600)),
        stabilization_seconds=draw(st.floats(0, 600)),
    )


loads = st.builds(
    Load,
    busy=counts,
    queued=counts,
    expected=counts,
    longest_wait=st.floats(0, 10_000),
    serving=st.integers(0, 200),
    free_slots=st.integers(0, 3),
    runs=counts,
    complete=st.booleans(),
)

FOUR = ScalingLimits(
    min_replicas=1,
    max_replicas=4,
    slots_per_pod=2,
    target_queue_per_slot=1.0,
    target_wait_seconds=30,
    stabilization_seconds=60,
)


@given(loads, limits())
def test_recommendation_stays_within_bounds(load: Load, limits: ScalingLimits) -> None:
    assert limits.min_replicas <= recommend(load, limits) <= limits.max_replicas


@given(loads, limits(), st.sampled_from(["busy", "queued", "expected", "longest_wait"]), counts)
def test_more_load_never_calls_for_fewer_judges(load: Load, limits: ScalingLimits, part: str, more: int) -> None:
    heavier = Load(**{**vars(load), part: getattr(load, part) + more})
    assert recommend(heavier, limits) >= recommend(load, limits)


@given(loads, limits())
def test_recommended_judges_hold_the_demand_unless_at_the_maximum(load: Load, limits: ScalingLimits) -> None:
    replicas = recommend(load, limits)
    capacity = replicas * limits.slots_per_pod * (1 + limits.target_queue_per_slot)
    assert capacity >= load.demand * (1 - 1e-9) or replicas == limits.max_replicas


@given(st.lists(st.tuples(loads, st.floats(0, 100)), max_size=30), limits(), st.integers(0, 1000))
def test_decision_stays_within_bounds_and_follows_growth_at_once(
    steps: list[tuple[Load, float]], limits: ScalingLimits, current: int
) -> None:
    now, history = 0.0, ()
    for load, elapsed in steps:
        now += elapsed
        decision = decide(load, limits, current=current, history=history, now=now)
        assert limits.min_replicas <= decision.replicas <= limits.max_replicas
        assert decision.replicas >= recommend(load, limits)
        current, history = decision


@given(st.lists(st.tuples(loads, st.floats(0.1, 100)), min_size=1, max_size=30), limits())
def test_decision_is_the_largest_recommendation_of_the_window(
    steps: list[tuple[Load, float]], limits: ScalingLimits
) -> None:
    """Forgetting dominated recommendations changes nothing."""
    now, history, current, seen = 0.0, (), limits.min_replicas, []
    for load, elapsed in steps:
        now += elapsed
        decision = decide(load, limits, current=current, history=history, now=now)
        seen.append((now, decision.history[-1].replicas))
        window = [r for at, r in seen if now - at < limits.stabilization_seconds or at == now]
        assert decision.replicas == max(window)
        current, history = decision


def test_pool_grows_ahead_of_an_announced_burst() -> None:
    assert decide(Load(expected=16), FOUR, current=1, history=(), now=0).replicas == 4


def test_gap_between_batches_keeps_the_judges() -> None:
    busy = decide(Load(busy=8, queued=8), FOUR, current=1, history=(), now=0)
    gap = decide(Load(), FOUR, current=busy.replicas, history=busy.history, now=59)
    over = decide(Load(), FOUR, current=gap.replicas, history=gap.history, now=61)
    assert (busy.replicas, gap.replicas, over.replicas) == (4, 4, 1)


def test_pool_shrinks_by_steps_as_the_peaks_leave_the_window() -> None:
    current, sizes = 1, {}
    history: tuple[Recommendation, ...] = ()
    for now, programs in ((0, 16), (10, 12), (20, 8), (30, 8), (59, 0), (65, 0), (75, 0), (95, 0)):
        current, history = decide(Load(queued=programs), FOUR, current=current, history=history, now=float(now))
        sizes[now] = current
    assert sizes == {0: 4, 10: 4, 20: 4, 30: 4, 59: 4, 65: 3, 75: 2, 95: 1}


def test_restarted_operator_does_not_shrink_a_pool_before_its_window_has_passed() -> None:
    first = decide(Load(), FOUR, current=4, history=(), now=1000)
    assert first.replicas == 4
    assert decide(Load(), FOUR, current=4, history=first.history, now=1061).replicas == 1


def test_silent_judges_never_shrink_a_pool() -> None:
    decision = decide(Load(complete=False), FOUR, current=4, history=(), now=0)
    for now in range(30, 600, 30):
        decision = decide(
            Load(complete=False), FOUR, current=decision.replicas, history=decision.history, now=float(now)
        )
    assert decision.replicas == 4


def test_history_does_not_grow_without_bound() -> None:
    decision = decide(Load(), FOUR, current=1, history=(), now=0)
    for second in range(1, 1000):
        load = Load(queued=second % 17)
        decision = decide(load, FOUR, current=decision.replicas, history=decision.history, now=float(second))
        assert len(decision.history) <= FOUR.max_replicas + 1


def test_pool_at_zero_wakes_for_an_attempt_that_has_announced_nothing() -> None:
    limits = replace(FOUR, min_replicas=0)
    assert recommend(Load(), limits) == 0
    assert recommend(Load(runs=1), limits) == 1
    assert recommend(Load(runs=30), limits) == 1, "an attempt that runs says nothing of how many programs it has"
    assert recommend(Load(runs=1, busy=4, queued=4), limits) == recommend(Load(busy=4, queued=4), limits)


WIDE = replace(FOUR, max_replicas=100, target_queue_per_slot=4.0)
WAITING = Load(busy=8, queued=8, serving=4)
"""Four judges of two slots, all busy, and a queue that is short by its length."""


def test_pool_grows_where_programs_wait_too_long_though_the_queue_is_short() -> None:
    assert recommend(replace(WAITING, longest_wait=30), WIDE) == 2
    assert recommend(replace(WAITING, longest_wait=40), WIDE) == 6
    assert recommend(replace(WAITING, longest_wait=4000), WIDE) == 8, "twice as many at most"


def test_pool_grows_no_further_than_a_slot_for_each_program() -> None:
    assert recommend(replace(WAITING, queued=2, longest_wait=4000), WIDE) == 5


def test_wait_at_one_judge_while_another_has_a_free_slot_calls_for_no_third_and_lets_neither_go() -> None:
    assert recommend(replace(WAITING, free_slots=1, longest_wait=4000), WIDE) == 4
    assert recommend(replace(WAITING, free_slots=1, longest_wait=30), WIDE) == 2
    assert recommend(replace(WAITING, free_slots=5, busy=3, queued=2, longest_wait=4000), WIDE) == 3, "a slot each"


@pytest.mark.parametrize("stabilization", [0, 60])
def test_pool_does_not_go_up_and_down_for_a_program_that_waits_at_one_judge(stabilization: float) -> None:
    """Judges hand nothing on that they have accepted: the second one's slots are free for as long as it waits."""
    limits, sizes = replace(WIDE, stabilization_seconds=stabilization), []
    decision = decide(Load(busy=2), limits, current=1, history=(), now=0)
    for now in range(0, 600, 5):
        serving = decision.replicas
        load = Load(busy=2, queued=1, longest_wait=31, serving=serving, free_slots=2 * (serving - 1))
        decision = decide(load, limits, current=serving, history=decision.history, now=float(now))
        sizes.append(decision.replicas)
    assert set(sizes) == {2}


@given(loads, limits())
def test_waiting_alone_never_doubles_a_pool_more_than_once_before_new_judges_serve(
    load: Load, limits: ScalingLimits
) -> None:
    patient = replace(load, longest_wait=0.0)
    assert recommend(load, limits) <= max(recommend(patient, limits), 2 * load.serving, limits.min_replicas)
