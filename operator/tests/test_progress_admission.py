"""Who may report for a run: decided from the token's review and the pod's labels alone."""

from __future__ import annotations

from typing import Any

import pytest

from deepcoder_contracts.progress import AUDIENCE, ProgressReply
from deepcoder_operator.domain.names import HEAD, LABEL_ORDINAL, LABEL_ROLE, LABEL_RUN, LABEL_RUN_UID, LEARNER
from deepcoder_operator.progress.admission import NotAdmitted, admit
from deepcoder_operator.progress.authentication import Subject, Unauthenticated, subject_of_review
from deepcoder_operator.progress.ratelimit import RateLimiter
from deepcoder_operator.progress_board import RunEntry, RunKey

RUN = RunKey("ml", "demo")
SUBJECT = Subject("ml", "demo-head", "uid-1")


def review(**changes: Any) -> dict[str, Any]:
    return {
        "authenticated": True,
        "audiences": [AUDIENCE],
        "user": {
            "username": "system:serviceaccount:ml:demo-trainer",
            "extra": {
                "authentication.kubernetes.io/pod-name": ["demo-head"],
                "authentication.kubernetes.io/pod-uid": ["uid-1"],
            },
        },
    } | changes


def pod(**labels: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "demo-head",
            "uid": "uid-1",
            "labels": {LABEL_RUN: "demo", LABEL_RUN_UID: "run-1", LABEL_ORDINAL: "3", LABEL_ROLE: HEAD} | labels,
        }
    }


def test_review_tells_the_pod_that_the_token_is_bound_to() -> None:
    assert subject_of_review(review(), AUDIENCE) == SUBJECT


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({}, "not valid"),
        (review(authenticated=False), "not valid"),
        (review(audiences=["https://kubernetes.default.svc"]), "audience"),
        (review(audiences=None), "audience"),
        (review(user={"username": "system:serviceaccount:ml:demo-trainer"}), "bound to a pod"),
        (review(user={**review()["user"], "username": "alice"}), "bound to a pod"),
    ],
)
def test_review_that_proves_nothing_is_refused(status: dict[str, Any], why: str) -> None:
    with pytest.raises(Unauthenticated, match=why):
        subject_of_review(status, AUDIENCE)


def test_head_of_the_attempt_is_admitted() -> None:
    admit(SUBJECT, pod(), RUN, 3)


@pytest.mark.parametrize(
    ("subject", "seen", "ordinal"),
    [
        (Subject("other", "demo-head", "uid-1"), pod(), 3),
        (Subject("ml", "demo-head", "uid-2"), pod(), 3),
        (SUBJECT, None, 3),
        (SUBJECT, pod(**{LABEL_RUN: "another"}), 3),
        (SUBJECT, pod(), 4),
        (SUBJECT, pod(**{LABEL_ROLE: LEARNER}), 3),
    ],
    ids=["other namespace", "pod made again", "unknown pod", "other run", "other attempt", "no head"],
)
def test_everyone_else_is_refused(subject: Subject, seen: dict[str, Any] | None, ordinal: int) -> None:
    with pytest.raises(NotAdmitted):
        admit(subject, seen, RUN, ordinal, entry())


def entry(ordinal: int = 3, run_uid: str = "run-1", head_uid: str | None = None) -> RunEntry:
    return RunEntry(ProgressReply(), ordinal, run_uid, None, head_uid)


def test_head_that_was_seen_is_the_only_one_that_speaks_for_the_live_attempt() -> None:
    """Labels are written by whoever makes a pod; the uid of the head is not."""
    admit(SUBJECT, pod(), RUN, 3, entry())
    admit(SUBJECT, pod(), RUN, 3, entry(head_uid="uid-1"))
    admit(SUBJECT, pod(), RUN, 3, entry(ordinal=4, head_uid="uid-2"))
    with pytest.raises(NotAdmitted, match="not the head"):
        admit(SUBJECT, pod(), RUN, 3, entry(head_uid="uid-2"))


def test_pod_of_an_earlier_run_of_the_name_is_refused() -> None:
    with pytest.raises(NotAdmitted, match="earlier run"):
        admit(SUBJECT, pod(), RUN, 3, entry(run_uid="run-2"))


def test_rate_limit_allows_a_burst_then_the_rate_and_keeps_callers_apart() -> None:
    now = [0.0]
    limiter = RateLimiter(rate=2, burst=3, clock=lambda: now[0])
    assert [limiter.wait_seconds("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert limiter.wait_seconds("b") == 0
    now[0] = 0.5
    assert limiter.wait_seconds("a") == 0
    assert limiter.wait_seconds("a") > 0
