"""Fixtures: a running slot for each tier that this machine allows, and a short way to judge with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deepcoder_contracts.judge import JudgeRequest, JudgeResponse, TestCase, Tier
from deepcoder_sandbox import admission
from deepcoder_sandbox.slot import Slot
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteFailed

JudgeIt = Callable[..., JudgeResponse]


@pytest.fixture(scope="session", params=[Tier.LANDLOCK, pytest.param(Tier.NAMESPACES, marks=pytest.mark.root)])
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


def make_request(code: str, *tests: tuple[str, str], **fields: Any) -> JudgeRequest:
    cases = [TestCase(input=given, output=expected) for given, expected in tests or [("", "")]]
    return JudgeRequest(**{"id": "test", "code": code, "tests": cases, **fields})


def judge_with(slot: Slot) -> JudgeIt:
    def judge(code: str, *tests: tuple[str, str], output_bytes: int = 1 << 20, **fields: Any) -> JudgeResponse:
        request = make_request(code, *tests, **fields)
        cases = tuple(request.tests or ())
        admission.check(request, cases)
        return slot.judge(Submission(request, cases, output_bytes), time.monotonic() + 120)

    return judge


@pytest.fixture
def judge(slot: Slot) -> JudgeIt:
    """Judge in each tier: `judge(code, (input, output), …, **request_fields)`."""
    return judge_with(slot)


@pytest.fixture
def judge_once(any_slot: Slot) -> JudgeIt:
    """Judge in one tier."""
    return judge_with(any_slot)


@pytest.fixture
def make() -> Callable[..., JudgeRequest]:
    """Make a request: `make(code, (input, output), …, **request_fields)`."""
    return make_request
