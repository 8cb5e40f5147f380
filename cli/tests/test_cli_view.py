"""The live view: what is drawn from a full status, from an empty one, and from pods in trouble."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from deepcoder_cli.commands.stages import told
from deepcoder_cli.follow import one_line
from deepcoder_cli.output import age, cell
from deepcoder_cli.snapshot import Snapshot
from deepcoder_cli.view import curve_point, pod_state, render, sparkline
from deepcoder_contracts.labels import pool_of

NOW = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)


def a_run(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team", "name": "run"},
        "spec": {
            "stages": [
                {"name": "short", "type": "Train", "contextTokens": 28, "maxSteps": 40},
                {"name": "eval", "type": "Evaluate", "contextTokens": 112},
            ],
            "sandbox": {"template": {}},
        },
        "status": status,
    }


RUNNING: dict[str, Any] = {
    "phase": "Running",
    "currentStage": {"name": "short", "index": 0, "contextTokens": 28, "ordinal": 2},
    "progress": {"step": 12, "maxSteps": 40, "display": "12/40", "reward": "0.4375", "truncatedRatio": "0.31",
                 "verdicts": {"passed": 7, "wrong_answer": 25}},
    "latestCheckpoint": {"uri": "s3://bucket/p/team/run-0f0e0d0c/short/step-000010.a002", "step": 10},
}  # fmt: skip


def drawn(snapshot: Snapshot, width: int = 140) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render(snapshot, [p] if (p := curve_point(snapshot.run)) else [], NOW))
    return console.export_text()


def test_a_running_run_shows_step_reward_truncation_verdicts_and_judges() -> None:
    pool = {"status": {"readyReplicas": 2, "desiredReplicas": 3, "slots": 4, "busySlots": 1, "queueDepth": 9}}
    text = drawn(Snapshot(a_run(**RUNNING), pool, ()))
    for part in ("Running", "12/40", "0.44", "0.31", "wrong_answer 25", "2 ready of 3 wanted", "1/4 busy, 9 queued"):
        assert part in text


def test_eighty_columns_break_no_figure_and_cut_no_name() -> None:
    pool = {"status": {"readyReplicas": 2, "desiredReplicas": 3, "slots": 4, "busySlots": 1, "queueDepth": 9}}
    run = a_run(**RUNNING)
    name = run["spec"]["stages"][0]["name"]
    run["status"]["stages"] = [{"name": name, "checkpoint": {"uri": f"s3://b/team/demo/{name}/step-000020.a002"}}]
    text = drawn(Snapshot(run, pool, ()), 80)
    whole = ("step 12/40", "reward 0.44", "truncated 0.31", "2 ready of 3 wanted", "1/4 busy, 9 queued")
    for part in (*whole, f"{name}/step-000020.a002"):
        assert part in text, text


def test_a_run_that_the_operator_has_not_seen_is_pending() -> None:
    assert "Pending" in drawn(Snapshot({**a_run(), "status": {}}, None, ()))


def test_a_refused_run_shows_why() -> None:
    refused = {"type": "Accepted", "status": "False", "reason": "SecretNotFound", "message": "no Secret creds"}
    assert "no Secret creds" in drawn(Snapshot(a_run(phase="Pending", conditions=[refused]), None, ()))


def test_figures_that_stand_still_are_said_to_be_old() -> None:
    """Where the operator is away, or the trainer hangs, a status goes on saying Running at its last step."""
    old, new = (RUNNING | {"progress": RUNNING["progress"] | {"time": t}} for t in (
        "2025-12-31T23:47:00Z", "2026-01-01T00:00:30Z"))  # fmt: skip
    assert "last report was 14m ago" in drawn(Snapshot(a_run(**old), None, ()))
    assert "last report" not in drawn(Snapshot(a_run(**new), None, ()))
    assert "last report" not in drawn(Snapshot(a_run(**old | {"phase": "Backoff"}), None, ())), "nobody reports then"


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ({"type": "Accepted", "status": "False", "reason": "PodRefused", "message": "exceeded quota"}, True),
        ({"type": "Ready", "status": "False", "reason": "ErrImagePull", "message": "no such image"}, True),
        ({"type": "Scaling", "status": "False", "reason": "AtMaximum", "message": "raise spec.maxReplicas"}, True),
        ({"type": "Scaling", "status": "True", "reason": "ScalingUp", "message": "2 judges are wanted"}, False),
        ({"type": "Ready", "status": "True", "reason": "JudgesReady", "message": "2 of 2 judges"}, False),
    ],
)
def test_what_keeps_judges_from_being_enough_is_shown_in_their_pools_words(
    condition: dict[str, str], told: bool
) -> None:
    text = drawn(Snapshot(a_run(**RUNNING), {"status": {"conditions": [condition]}}, ()))
    assert (f"judges: {condition['type']}" in text and condition["message"] in text) is told


HOSTILE = "gone\x1b[2J\x1b]0;title\x07 and \x9b31m back"
"""Clears a terminal, renames it, colours it: what a program printed last may be in a message."""


def test_nodes_on_which_judges_do_not_start_are_shown_with_their_last_words() -> None:
    words = "CrashLoopBackOff: exit code 64: no Landlock"
    nodes = [{"name": "bad-1", "since": "2026-01-01T00:00:00Z", "message": words}, {"name": "bad-2"}]
    text = drawn(Snapshot(a_run(**RUNNING), {"status": {"readyReplicas": 1, "avoidedNodes": nodes}}, ()))
    assert f"judges: none start on node bad-1, where one failed to start: {words}" in text
    assert "node bad-2" in text


def test_what_a_terminal_would_obey_is_shown() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "Application", "message": HOSTILE}
    progressing = {"type": "Progressing", "status": "False", "reason": "Failed", "message": HOSTILE}
    for shown in (drawn(Snapshot(a_run(phase="Failed", conditions=[failed, progressing]), None, ())), cell(HOSTILE)):
        assert r"gone\x1b[2J\x1b]0;title\x07 and \x9b31m back" in shown
        assert not [c for c in shown if not c.isprintable() and c != "\n"]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"phase": "Running"}, "Running"),
        (
            {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]},
            "ErrImagePull",
        ),
        ({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}]}, "OOMKilled"),
    ],
)
def test_a_pod_is_in_the_state_kubectl_would_say(status: dict[str, Any], expected: str) -> None:
    assert pod_state({"metadata": {}, "status": status}) == expected


def test_a_log_line_tells_the_same_in_one_line() -> None:
    line = one_line(Snapshot(a_run(**RUNNING), None, ()))
    assert line == (
        "Running, stage short context 28 attempt 2, step 12/40, reward 0.44, truncated 0.31, "
        "checkpoint short/step-000010.a002"
    )


def test_a_run_that_curates_its_set_says_how_far_it_is() -> None:
    figures = {"curation_verify_done": "1234", "curation_verify_total": "24287"}
    progress = {"step": 0, "maxSteps": 40, "display": "0/40", "phase": "Curating", "metrics": figures}
    run = a_run(phase="Running", currentStage=RUNNING["currentStage"], progress=progress)
    assert "curating verify 1,234/24,287" in drawn(Snapshot(run, None, ()))
    assert one_line(Snapshot(run, None, ())) == (
        "Running, stage short context 28 attempt 2, curating verify 1,234/24,287"
    )
    progress["metrics"] = {}
    assert "curating begins" in one_line(Snapshot(run, None, ()))
    assert "curating" not in drawn(Snapshot(a_run(**RUNNING), None, ()))


def test_sparkline_spans_the_unit_interval_and_keeps_the_newest() -> None:
    assert sparkline([0.0, 1.0, 2.0], 8) == "▁██"
    assert sparkline([0.0] * 10 + [1.0], 3) == "▁▁█"


def test_a_run_without_a_shared_pool_has_one_of_its_own() -> None:
    assert pool_of(a_run()) == "run-sandbox"
    shared = a_run()
    shared["spec"]["sandbox"] = {"poolRef": {"name": "team"}}
    assert pool_of(shared) == "team"
    shared["spec"]["sandbox"] = {"together": {"credentialsSecretRef": {"name": "together"}}}
    assert pool_of(shared) is None
    shared["status"] = {"attempt": {"pool": "team"}}
    assert pool_of(shared) == "team", "the live attempt keeps the judges that it began with"


def test_a_stages_row_tells_what_evaluations_came_to_and_not_the_dozens_of_figures_of_a_step() -> None:
    results = {"reward_mean": "0.7", "entropy": "0.1", "eval/lcb/pass_at_1": "0.5", "eval/lcb/pass_at_1_low": "0.4"}
    assert told(results) == "eval/lcb/pass_at_1 0.5"


def test_pods_are_drawn_with_their_ready_containers_and_their_age() -> None:
    about = {"name": "demo-head", "creationTimestamp": "2025-12-31T23:56:00Z"}
    statuses = [{"name": "ray-head", "ready": True}, {"name": "mesh", "ready": False}]
    spec = {"containers": [{"name": "ray-head"}, {"name": "mesh"}, {"name": "late"}]}
    pod = {"metadata": about, "spec": spec, "status": {"phase": "Running", "containerStatuses": statuses}}
    (line,) = [row for row in drawn(Snapshot(a_run(**RUNNING), None, (pod,))).splitlines() if "demo-head" in row]
    assert line.strip("│ ").split() == ["demo-head", "Running", "1/3", "5m"]
    about["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert "Terminating" in drawn(Snapshot(a_run(**RUNNING), None, (pod,)))


def test_stages_are_drawn_with_the_step_of_the_report_for_the_current_one_and_of_the_status_for_others() -> None:
    run = a_run(**RUNNING, stages=[{"name": "short", "phase": "Active", "step": 10}])
    run["spec"]["stages"].append({"name": "long", "contextTokens": 64, "maxSteps": 30})
    run["status"]["stages"].append({"name": "long", "phase": "Pending", "step": 3})
    lines = drawn(Snapshot(run, None, ())).splitlines()
    rows = {words[0]: words for line in lines if (words := line.strip("│ ").split())}
    assert "12/40" in rows["short"]
    assert "3/30" in rows["long"]
    assert "–" in rows["eval"], "an evaluation has no steps"


def test_the_commonest_verdict_comes_first() -> None:
    assert "wrong_answer 25  passed 7" in drawn(Snapshot(a_run(**RUNNING), None, ()))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_799, "47h"), (172_800, "2d")],
)
def test_an_age_has_the_largest_unit_of_which_there_are_two(seconds: int, shown: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), NOW) == shown


def test_a_time_after_now_has_no_negative_age() -> None:
    """The cluster's clock may be ahead of this machine's."""
    assert age(NOW + timedelta(seconds=5), NOW) == "0s"
