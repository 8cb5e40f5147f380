"""What a log of a followed run says where there is no terminal: each change of state, and why the run waits."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from deepcoder_cli import follow as following
from deepcoder_cli.condition_messages import JUDGES_SECONDS, NewMessages
from deepcoder_cli.snapshot import Snapshot
from deepcoder_client.errors import Unreachable

REFUSES = "no judge is ready; 1 of 1 pods: CrashLoopBackOff: exit code 64: the root is read-only"


def condition(kind: str, status: str, reason: str, message: str) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def progressing(reason: str, message: str) -> dict[str, str]:
    return condition("Progressing", "True", reason, message)


def snapshot(phase: str, *conditions: dict[str, str], pool: dict[str, str] | None = None) -> Snapshot:
    run = {"metadata": {"namespace": "team", "name": "run"}, "status": {"phase": phase, "conditions": [*conditions]}}
    return Snapshot(run, {"status": {"conditions": [pool]}} if pool else None, ())


def ready(status: str, reason: str, message: str) -> dict[str, str]:
    return condition("Ready", status, reason, message)


def test_what_keeps_judges_away_is_told_once_it_has_lasted_and_once() -> None:
    told = NewMessages()
    refused = ready("False", "CrashLoopBackOff", REFUSES)
    assert told.news(snapshot("Running", pool=ready("False", "NoJudgeReady", "no judge is ready yet")), 0) == []
    assert told.news(snapshot("Running", pool=refused), JUDGES_SECONDS - 1) == []
    assert told.news(snapshot("Running", pool=refused), JUDGES_SECONDS) == [
        f"judges: Ready=False CrashLoopBackOff: {REFUSES}"
    ]
    others = ready("False", "CrashLoopBackOff", REFUSES.replace("1 of 1", "1 of 2"))
    assert told.news(snapshot("Running", pool=others), JUDGES_SECONDS + 60) == [], "other words of the same"
    other = ready("False", "ErrImagePull", "no such image")
    assert told.news(snapshot("Running", pool=other), JUDGES_SECONDS + 61) == [
        "judges: Ready=False ErrImagePull: no such image"
    ]


def test_judges_that_were_ready_in_between_are_given_time_again_and_told_of_again() -> None:
    told = NewMessages()
    refused = snapshot("Running", pool=ready("False", "CrashLoopBackOff", REFUSES))
    told.news(refused, 0)
    assert told.news(refused, JUDGES_SECONDS)
    told.news(snapshot("Running", pool=ready("True", "JudgesReady", "1 of 1 judges are ready")), 40)
    assert told.news(refused, 41) == []
    assert told.news(refused, 41 + JUDGES_SECONDS)


def test_each_trouble_is_told_once_for_as_long_as_it_lasts() -> None:
    told = NewMessages()

    def stalled(seconds: int) -> Snapshot:
        return snapshot("Running", condition("Stalled", "True", "NoProgress", f"no step for {seconds} s"))

    assert told.news(stalled(900), 0) == ["Stalled=True NoProgress: no step for 900 s"]
    assert told.news(stalled(901), 1) == []
    assert told.news(snapshot("Running"), 2) == []
    assert told.news(stalled(900), 3) == ["Stalled=True NoProgress: no step for 900 s"]


@pytest.mark.parametrize("phase", ["Pending", "Backoff", "Held", "Failed"])
def test_phase_that_asks_why_is_followed_by_the_operators_words(phase: str) -> None:
    told = NewMessages()
    assert told.news(snapshot("Running", progressing("Running", "attempt 1 runs")), 0) == []
    waits = progressing("SandboxUnavailable", f"attempt 1 failed: {REFUSES}; next attempt in 10 s")
    assert told.news(snapshot(phase, waits), 1) == [f"attempt 1 failed: {REFUSES}; next attempt in 10 s"]
    assert told.news(snapshot(phase, waits), 2) == []
    assert told.news(snapshot("Running", progressing("Running", "attempt 2 runs")), 3) == []
    assert told.news(snapshot(phase, waits), 4), "it waits again"


def test_a_run_that_waits_for_nothing_yet_has_nothing_to_say() -> None:
    assert NewMessages().news(snapshot("Pending"), 0) == []
    assert NewMessages().news(snapshot("Pending", condition("Progressing", "Unknown", "NotYetObserved", "")), 0) == []


def test_why_a_run_waits_is_not_told_twice_where_a_trouble_says_just_that() -> None:
    words = "checkpoint.s3.credentialsSecretRef: Secret s3 does not exist"
    refused = condition("Accepted", "False", "SecretNotFound", words)
    told = NewMessages().news(snapshot("Pending", refused, progressing("SecretNotFound", words)), 0)
    assert told == [f"Accepted=False SecretNotFound: {words}"]


class _Client:
    namespace = "team"


def test_a_log_without_a_terminal_says_why_below_each_change(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = progressing("SandboxUnavailable", "attempt 1 failed: exit code 64:\n::error::[root] is \x1b[2Jread-only")
    states: Iterator[Snapshot] = iter(
        [snapshot("Running"), snapshot("Running"), snapshot("Backoff", failed), snapshot("Failed", failed)]
    )

    def take(client: Any, name: str) -> Snapshot:
        return next(states)

    monkeypatch.setattr(following, "take", take)
    monkeypatch.setattr(following, "INTERVAL_SECONDS", 0.0)
    out = io.StringIO()
    client: Any = _Client()
    following.follow(client, "run", seconds=60, console=Console(file=out, width=40))
    times, lines = zip(*(line.split(" ", 1) for line in out.getvalue().splitlines() if line.strip()), strict=True)
    assert all(time.endswith("Z") for time in times), "the zone of a log's reader is another"
    assert "\n::" not in out.getvalue(), "a line that a program begins is an order to whoever runs this"
    words = r"  attempt 1 failed: exit code 64: ::error::[root] is \x1b[2Jread-only"
    assert lines == ("Running", "Backoff", words, "Failed", words)


@pytest.mark.parametrize("away", [following.PATIENCE_SECONDS - 5, 3600.0])
def test_an_api_server_that_restarts_is_waited_for_and_one_that_stays_away_is_told(
    monkeypatch: pytest.MonkeyPatch, away: float
) -> None:
    now, goes = [0.0], 2 * following.PATIENCE_SECONDS

    def take(client: Any, name: str) -> Snapshot:
        if goes < now[0] <= goes + away:
            raise Unreachable("it does not answer")
        return snapshot("Running" if now[0] <= goes else "Complete")

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(following, "take", take)
    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    client: Any = _Client()
    console = Console(file=io.StringIO())
    if away < following.PATIENCE_SECONDS:
        assert following.follow(client, "run", seconds=7200, console=console)["status"]["phase"] == "Complete"
    else:
        with pytest.raises(Unreachable):
            following.follow(client, "run", seconds=7200, console=console)
        assert now[0] < goes + following.PATIENCE_SECONDS + 5
