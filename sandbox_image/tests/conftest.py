"""Fixtures: a judge to attack for each tier that this machine allows, and a short way to judge with it.

Where DEEPCODER_JUDGE_URL names a server (its token in the file DEEPCODER_JUDGE_TOKEN_FILE), the same tests attack that
server instead, from beside it: that is how they run inside a real pod. Tests that need a slot of their own get one
there too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_harness import Judging, OwnSlot, Served
from scripted_slots import Clock, ScriptedSlot

from deepcoder_contracts.judge import JudgeRequest, JudgeResponse, TestCase, Tier
from deepcoder_sandbox import admission, pool
from deepcoder_sandbox.slot import Slot
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.worker import program_rehearsal, rehearsal  # noqa: F401  # bytecode of zygotes, which write none
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteFailed

JudgeIt = Callable[..., JudgeResponse]

SERVED = os.environ.get("DEEPCODER_JUDGE_URL")
TIERS = [Tier.LANDLOCK] if SERVED else [Tier.LANDLOCK, pytest.param(Tier.NAMESPACES, marks=pytest.mark.root)]


@pytest.fixture(scope="session", params=TIERS)
def slot(request: pytest.FixtureRequest) -> Iterator[Slot]:
    """A slot in each tier; without root the namespaces tier is skipped where it is not allowed."""
    slot = Slot(ZygoteConfig(tier=request.param), worker="test")
    try:
        slot.ensure_zygote()
    except ZygoteFailed as failed:
        if os.geteuid() == 0:
            raise
        pytest.skip(str(failed))
    yield slot
    slot.close()


@pytest.fixture(scope="session")
def any_slot() -> Iterator[Slot]:
    """One slot, for what does not depend on the tier."""
    slot = Slot(ZygoteConfig(tier=Tier.LANDLOCK), worker="test")
    yield slot
    slot.close()


@pytest.fixture
def judging(slot: Slot) -> Judging:
    """Who judges, and what can be seen of it from outside."""
    if SERVED is None:
        return OwnSlot(slot)
    return Served(SERVED, Path(os.environ["DEEPCODER_JUDGE_TOKEN_FILE"]).read_text().strip())


def make_request(code: str, *tests: tuple[str, str], **fields: Any) -> JudgeRequest:
    cases = [TestCase(input=given, output=expected) for given, expected in tests or [("", "")]]
    return JudgeRequest(**{"id": os.urandom(8).hex(), "code": code, "tests": cases, **fields})


def judge_with(judging: Judging) -> JudgeIt:
    def judge(code: str, *tests: tuple[str, str], output_bytes: int = 1 << 20, **fields: Any) -> JudgeResponse:
        request = make_request(code, *tests, **fields)
        admission.check(request, tuple(request.tests or ()))
        return judging.judge(request, output_bytes)

    return judge


@pytest.fixture
def judge(judging: Judging) -> JudgeIt:
    """Judge in each tier: `judge(code, (input, output), …, **request_fields)`."""
    return judge_with(judging)


@pytest.fixture
def judge_once(any_slot: Slot) -> JudgeIt:
    """Judge in one tier."""
    return judge_with(OwnSlot(any_slot))


@pytest.fixture
def make() -> Callable[..., JudgeRequest]:
    """Make a request: `make(code, (input, output), …, **request_fields)`."""
    return make_request


@pytest.fixture
def held_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Slots of this process keep what they have judged, and stay busy, until this is set."""
    may_go_on, judge = threading.Event(), Slot.judge

    def judge_and_hold(slot: Slot, submission: Submission, deadline: float) -> JudgeResponse:
        answer = judge(slot, submission, deadline)
        assert may_go_on.wait(60), "nobody has let it go on"
        return answer

    monkeypatch.setattr(Slot, "judge", judge_and_hold)
    yield may_go_on
    may_go_on.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of a pool and of its scripted slots."""
    clock = Clock()
    monkeypatch.setattr(pool, "time", clock)
    monkeypatch.setattr(ScriptedSlot, "clock", clock)
    return clock


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedSlot]:
    """A pool's slots are told what to do; those made so far."""
    monkeypatch.setattr(ScriptedSlot, "made", [])
    monkeypatch.setattr(pool, "Slot", ScriptedSlot)
    return ScriptedSlot.made


@pytest.fixture
def asked(make: Callable[..., JudgeRequest]) -> Callable[..., Submission]:
    """Make a submission for a pool whose slots are told: `asked(name, what_happens, **request_fields)`."""

    def ask(name: str, code: str = "pass", **fields: Any) -> Submission:
        request = make(code, id=name, **fields)
        return Submission(request, tuple(request.tests))

    return ask
