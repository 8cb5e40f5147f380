"""The operator is killed between every two of its writes; another one begins, and all is as if nothing had been.

In the short form one run outlives as many operators as there are writes: each is killed after the first write that none
before it had made. In the long form each gap has a test of its own, killed before the write and after it. A life that
nobody ends makes no write that has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from faulty_api import Side, Write
from kill_scenarios import CrashAndComplete, Scenario, SuspendAndDelete
from loop_world import Cluster, wait_for
from operator_lives import Lives, lives_in
from run_manifests import TRAIN

from deepcoder_operator.domain.bounds import GRACE_SECONDS
from deepcoder_operator.kube.errors import Unavailable
from deepcoder_operator.kube.resources import PODS, RUNS

SECONDS = 600.0
"""For a run with a killed operator for each of its writes; each takes half a second to two on a quiet machine."""

pytestmark = [pytest.mark.apiserver, pytest.mark.s3, pytest.mark.timeout(SECONDS + 60), pytest.mark.early]

_POOL = (
    "POST secrets demo-sandbox-token",
    "PATCH services demo-sandbox-judge",
    "PATCH networkpolicies demo-sandbox-judge",
    "PATCH poddisruptionbudgets demo-sandbox-judge",
    "POST pods judge",
    "PATCH sandboxpools demo-sandbox/status",
)


def _attempt(name: str, first: bool) -> tuple[str, ...]:
    """Writes from the intent to the running program."""
    shared = ("PUT s3 RUN.json", "POST serviceaccounts demo-trainer", "POST networkpolicies demo-trainer",
              "POST sandboxpools demo-sandbox", "POST configmaps demo-config", *_POOL)  # fmt: skip
    return (
        f"PUT deepcoderruns demo/status Queued:{name}:Intended",
        *(shared if first else ("PATCH networkpolicies demo-trainer",)),
        f"POST configmaps {name}",
        f"POST rayjobs {name}",
        f"PUT deepcoderruns demo/status Running:{name}:Running",
    )


def _left(name: str, phase: str) -> tuple[str, ...]:
    ends = (f"DELETE configmaps {name}", f"DELETE rayjobs {name}")
    return (f"PUT deepcoderruns demo/status {phase}:{name}:Leaving", *ends)


_BEGIN = ("POST secrets progress-tls", "PATCH deepcoderruns demo held")
_SLOW_BUCKET = "PUT deepcoderruns demo/status Pending"
"""The first status of a run whose bucket takes more than two seconds: `test_plan_first_pass` cuts it short."""

_QUEUED = "PUT deepcoderruns demo/status Queued"

GAPS: dict[type[Scenario], tuple[str, ...]] = {
    CrashAndComplete: (
        *_BEGIN,
        *_attempt("demo-s0-a1", True),
        *_left("demo-s0-a1", "Backoff"),
        _QUEUED,
        *_attempt("demo-s0-a2", False),
        *_left("demo-s0-a2", "Promoting"),
        *_attempt("demo-s1-a3", False),
        *_left("demo-s1-a3", "Promoting"),
        "PUT deepcoderruns demo/status Complete",
        "DELETE sandboxpools demo-sandbox",
    ),
    SuspendAndDelete: (
        *_BEGIN,
        *_attempt("demo-s0-a1", True),
        "PUT deepcoderruns demo/status Draining:demo-s0-a1:Draining",
        *_left("demo-s0-a1", "Draining"),
        "PUT deepcoderruns demo/status Suspended",
        *_attempt("demo-s0-a2", False),
        "PUT deepcoderruns demo/status Draining:demo-s0-a2:Draining",
        *_left("demo-s0-a2", "Draining"),
        "POST s3 deepcoder?delete",
        "PATCH deepcoderruns demo let go",
    ),
}
"""The operator's writes in each scenario, in about this order."""


def _on_the_way(*names: str) -> tuple[str, ...]:
    """What is seen, or done, only where KubeRay and the nodes take their time."""
    starting = (f"PUT deepcoderruns demo/status Starting:{name}:Starting" for name in names)
    return (*starting, *(f"DELETE pods {name}-head" for name in names))


SOMETIMES: dict[type[Scenario], tuple[str, ...]] = {
    CrashAndComplete: (
        *_on_the_way("demo-s0-a1", "demo-s0-a2", "demo-s1-a3"),
        "PUT s3 pods.json",
        "PUT s3 head.log",
        "PATCH deepcoderruns demo let go",
    ),
    SuspendAndDelete: (
        *_on_the_way("demo-s0-a1", "demo-s0-a2"),
        "DELETE sandboxpools demo-sandbox",
        "PUT deepcoderruns demo/status Draining",
    ),
}
"""Those that not every life makes: they hang on others' pace, or on that nobody died a moment before. Their tests are
in a world that is in no hurry, where each is made."""


def cases() -> list[Any]:
    found = [(kind, gap, side) for kind in GAPS for gap in dict.fromkeys(GAPS[kind] + SOMETIMES[kind]) for side in Side]
    return [pytest.param(*case, id=f"{case[0].__name__}-{case[2]} {case[1]}") for case in found]


async def outlive(scenario: Scenario, lives: Lives, dies_at: Callable[[Write], Side | None]) -> None:
    """One operator after the other until the run is at its end."""
    life = await lives.begin(dies_at)
    await scenario.begin(lives.s3.url)
    try:
        async with asyncio.timeout(SECONDS):
            ended = False
            while not ended:
                if life.over:
                    life = await lives.begin(dies_at)
                with suppress(Unavailable):  # a busy machine's API server is asked again
                    ended = await scenario.ended()
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"the run does not end; written: {lives.labels}; {scenario.progress()}") from None
    await scenario.check()


@pytest.mark.parametrize("kind", list(GAPS))
async def test_run_outlives_an_operator_killed_after_each_of_its_writes(site: Cluster, kind: type[Scenario]) -> None:
    known: set[str] = set()

    def new(write: Write) -> Side | None:
        if write.label in known:
            return None
        known.add(write.label)
        return Side.AFTER

    async with lives_in(site) as lives:
        await outlive(kind(site), lives, new)
        assert sorted(set(GAPS[kind]) - set(lives.labels)) == [], "gaps that are named and were never reached"
        assert len([life for life in lives.all if life.died]) >= len(set(GAPS[kind]))


@pytest.mark.parametrize("kind", list(GAPS))
async def test_gaps_are_between_all_that_an_operator_writes_which_nobody_kills(
    site: Cluster, kind: type[Scenario]
) -> None:
    async with lives_in(site) as lives:
        await outlive(kind(site), lives, lambda write: None)
        without = sorted(set(lives.labels) - {*GAPS[kind], *SOMETIMES[kind], _SLOW_BUCKET})
        assert not without, f"gaps without a test: {without}"


async def test_job_after_a_crash_and_an_edit_has_the_config_that_it_was_made_with(site: Cluster) -> None:
    """The crash is between the attempt's ConfigMap and its RayJob, the edit before the next operator begins."""
    async with lives_in(site) as lives:
        life = await lives.begin(lambda write: Side.AFTER if write.label == "POST configmaps demo-s0-a1" else None)
        await site.create_run(stages=[TRAIN], s3={"endpoint": lives.s3.url}, checkpoint={"drainSeconds": 20})

        async def over() -> bool:
            return life.over

        await wait_for("the crash", over)
        edit = {"spec": {"checkpoint": {"drainSeconds": 33}}}
        await site.kube.patch(RUNS, site.namespace, "demo", edit)
        await lives.begin()
        await site.until_running("demo-s0-a1")
        pod = await site.kube.get(PODS, site.namespace, "demo-s0-a1-head")
        config = await site.standin.config("demo-s0-a1")
        assert config.storage.drain_seconds == 33
        assert pod["spec"]["terminationGracePeriodSeconds"] == 33 + GRACE_SECONDS


@pytest.mark.long
@pytest.mark.parametrize(("kind", "gap", "side"), cases())
async def test_killed_process_is_followed_by_another(site: Cluster, kind: type[Scenario], gap: str, side: Side) -> None:
    killed: list[Write] = []

    def once(write: Write) -> Side | None:
        if killed or write.label != gap:
            return None
        killed.append(write)
        return side

    site.standin.in_no_hurry = gap in SOMETIMES[kind]
    async with lives_in(site, processes=True) as lives:
        await outlive(kind(site), lives, once)
        assert killed, "the gap was never reached"
