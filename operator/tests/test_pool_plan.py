"""Which judges come and go: never too many, the serving ones last, the busy ones after the idle ones."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from deepcoder_operator.domain.pool_plan import (
    Cause,
    Deletion,
    JudgeLoad,
    JudgePod,
    PodPlan,
    backoff_until,
    plan_pods,
)

NEW, OLD = "aaaaaaaa", "bbbbbbbb"


def pod(index: int, template: str = NEW, **more: object) -> JudgePod:
    defaults: dict[str, object] = {"ready": True, "load": JudgeLoad(2, 0, 0)}
    return JudgePod(
        name=f"p-{index}-{template}",
        uid=f"uid-{index}-{template}",
        index=index,
        template_hash=template,
        created_at=0.0,
        **{**defaults, **more},  # type: ignore[arg-type]
    )


def plan(pods: list[JudgePod], desired: int, **more: object) -> PodPlan:
    return plan_pods(pods, desired=desired, template_hash=NEW, now=100.0, **more)  # type: ignore[arg-type]


@st.composite
def pools(draw: st.DrawFn) -> list[JudgePod]:
    names = draw(st.sets(st.tuples(st.integers(0, 12), st.sampled_from([NEW, OLD])), max_size=16))
    return [
        pod(
            index,
            template,
            ready=draw(st.booleans()),
            deleting=draw(st.booleans()),
            ended=draw(st.integers(0, 4)) == 0,
            load=draw(st.none() | st.builds(JudgeLoad, st.just(2), st.integers(0, 2), st.integers(0, 5))),
        )
        for index, template in sorted(names)
    ]


def apply(pods: list[JudgePod], step: PodPlan) -> list[JudgePod]:
    """What the cluster looks like once everything has settled: deleted pods gone, new ones serving."""
    gone = {d.uid for d in step.delete}
    kept = [p for p in pods if p.uid not in gone and not p.deleting]
    return [replace(p, ready=True, load=JudgeLoad(2, 0, 0)) for p in kept] + [pod(i) for i in step.create]


@given(pools(), st.integers(0, 20))
def test_never_more_live_judges_than_wanted_plus_the_surge(pods: list[JudgePod], desired: int) -> None:
    step = plan(pods, desired)
    live = [p for p in pods if not p.ended and not p.deleting]
    surge = max(1, desired // 4)
    assert not step.create or len(live) + len(step.create) <= desired + surge
    fresh = [p for p in live if p.template_hash == NEW]
    assert not step.create or len(fresh) + len(step.create) <= desired


@given(pools(), st.integers(0, 20))
def test_no_name_is_used_twice(pods: list[JudgePod], desired: int) -> None:
    step = plan(pods, desired)
    taken = {p.index for p in pods if p.template_hash == NEW}
    assert not taken & set(step.create)
    assert len(set(step.create)) == len(step.create)


@given(pools(), st.integers(0, 20))
def test_pool_settles_at_what_is_wanted_and_then_rests(pods: list[JudgePod], desired: int) -> None:
    for _ in range(60):
        step = plan(pods, desired)
        if step.empty and all(p.ready for p in pods):  # with nothing to do it may still wait for one to serve
            break
        pods = apply(pods, step)
    live = [p for p in pods if not p.deleting and not p.ended]
    assert plan(pods, desired).empty
    assert len(live) == desired
    assert all(p.template_hash == NEW for p in live)


@given(pools(), st.integers(0, 20))
def test_replacing_old_judges_never_takes_serving_capacity_below_what_is_wanted(
    pods: list[JudgePod], desired: int
) -> None:
    step = plan(pods, desired)
    gone = {d.uid for d in step.delete if d.cause is Cause.OUTDATED}
    live = [p for p in pods if not p.ended and not p.deleting]
    before = sum(p.ready for p in live)
    after = sum(p.ready for p in live if p.uid not in gone)
    assert after >= min(before, desired)


def test_idle_judges_go_before_busy_ones() -> None:
    pods = [pod(0, load=JudgeLoad(2, 0, 0)), pod(1, load=JudgeLoad(2, 2, 3)), pod(2, load=JudgeLoad(2, 1, 0))]
    assert [d.name for d in plan(pods, 1).delete] == [pods[0].name, pods[2].name]


def test_judges_that_are_not_ready_go_first_of_all() -> None:
    pods = [pod(0, load=JudgeLoad(2, 0, 0)), pod(1, ready=False, load=None)]
    assert [d.name for d in plan(pods, 1).delete] == [pods[1].name]


def test_failed_judge_is_deleted_and_its_name_is_free_once_it_is_gone() -> None:
    failed = pod(0, ready=False, ended=True)
    step = plan([failed], 1)
    assert step.delete == (Deletion(failed.name, failed.uid, Cause.ENDED, failed=True),)
    assert step.create == (1,)
    assert plan([], 1).create == (0,)


def test_old_judge_serves_until_its_successor_does() -> None:
    old = pod(0, OLD)
    assert plan([old], 1) == PodPlan(create=(0,))
    starting = pod(0, NEW, ready=False)
    assert plan([old, starting], 1).empty
    assert plan([old, replace(starting, ready=True)], 1).delete == (Deletion(old.name, old.uid, Cause.OUTDATED),)


def test_one_successor_that_serves_lets_one_old_judge_go() -> None:
    old = [pod(i, OLD) for i in range(4)]
    assert [d.name for d in plan([*old, pod(0)], 4).delete] == [old[3].name]


def test_judges_past_their_age_are_recycled_one_surge_at_a_time() -> None:
    pods = [pod(0), pod(1)]
    step = plan(pods, 2, max_age=60.0)
    assert step == PodPlan(create=(2,))
    young = replace(pod(2), created_at=99.0)
    assert plan([*pods, young], 2, max_age=60.0).delete[0].cause is Cause.TOO_OLD


def test_judge_that_has_not_started_yet_is_not_too_old() -> None:
    """An image may take longer to pull than a judge may become old. Its successor would have to pull it, too."""
    starting = [pod(0, ready=False, load=None), pod(1, ready=False, load=None)]
    assert plan(starting, 2, max_age=60.0).empty
    assert plan(starting, 2).empty
    assert [d.cause for d in plan([pod(0, OLD, ready=False)], 1, max_age=60.0).delete] == [Cause.OUTDATED]


def test_replacement_backs_off_and_the_backoff_is_bounded() -> None:
    assert backoff_until([], 100.0) == 0.0
    assert backoff_until([100.0], 100.0) == 101.0
    assert backoff_until([100.0] * 30, 100.0) == 160.0
    assert backoff_until([100.0] * 30, 1000.0) == 0.0
    assert backoff_until([1e6], 1e6 + 599) == 1e6 + 1
    assert backoff_until([1e6], 1e6 + 600) == 0.0
    assert plan([], 3, may_create=False).empty
    assert backoff_until([0.0, 100.0], 100.0) == 102.0, "after the last one"


def test_judge_that_ended_is_deleted_once() -> None:
    """Each deletion counts as a failure, which slows the replacement of judges down."""
    assert plan([pod(0, ready=False, ended=True, deleting=True)], 1).delete == ()
