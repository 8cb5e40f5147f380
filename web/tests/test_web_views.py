"""What the page is sent: columns that grow, rollouts in order, attempts with their ends, and nothing of a pod's."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from deepcoder_client.run_folder import Attempt
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.steps import StepRecord
from deepcoder_web import views

EXAMPLES = Path(__file__).parents[2] / "examples"
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
ONE = datetime(2026, 5, 1, 13, tzinfo=UTC)


def run_of(example: str = "demo", **status: Any) -> DeepCoderRun:
    spec = yaml.safe_load((EXAMPLES / f"{example}.yaml").read_text())["spec"]
    metadata = {"namespace": "team", "name": example, "uid": "u-1"}
    return DeepCoderRun.model_validate({"metadata": metadata, "spec": spec, "status": status})


def step(number: int, ordinal: int = 1, **metrics: float) -> StepRecord:
    return StepRecord("short", number, ordinal, 1000.0 + number, metrics or {"reward_mean": 0.5}, {}, {"train": 2.0})


def test_a_page_that_has_some_steps_is_sent_those_that_came_since() -> None:
    first = views.Steps([step(1), step(2)]).document()
    more = views.Steps([step(1), step(2), step(3)]).document(first["cursor"])
    assert (first["reset"], first["step"]) == (True, [1, 2])
    assert (more["reset"], more["step"], more["metrics"]) == (False, [3], {"reward_mean": [0.5]})


def test_a_page_whose_steps_were_trained_again_is_sent_all() -> None:
    first = views.Steps([step(1), step(2)]).document()
    again = views.Steps([step(1), step(2, ordinal=2), step(3, ordinal=2)]).document(first["cursor"])
    assert (again["reset"], again["step"]) == (True, [1, 2, 3])


def test_a_cursor_that_says_nothing_is_no_error() -> None:
    for cursor in ("", "nonsense", "-1-ab", "99-abcdef", "2-0000000000000000", "9" * 5000):
        assert views.Steps([step(1), step(2)]).document(cursor)["reset"] is True


def test_a_figure_that_is_missing_or_infinite_is_a_gap() -> None:
    steps = [step(1, loss=1.0), step(2, loss=math.inf), step(3, entropy=0.25)]
    document = views.Steps(steps).document()
    assert document["metrics"] == {"loss": [1.0, None, None], "entropy": [None, None, 0.25]}
    json.dumps(document, allow_nan=False)


def test_a_document_is_encoded_piece_by_piece_as_it_would_be_whole() -> None:
    for document in (
        views.Steps([step(1), step(2)]).document(),
        {},
        {"a": {}, "b": [{"c": "ü\n"}], "d": {"e": {"f": 1}}},
    ):
        assert json.loads(views.encoded(document)) == document


def row(group: int, index: int, reward: float | None, verdict: str, tokens: int = 10) -> dict[str, Any]:
    place = {"group_id": group, "index": index, "draw": 0, "problem_id": f"p{group}"}
    return place | {"reward": reward, "verdict": verdict, "response_tokens": tokens, "dropped": False}


ROWS = [
    row(0, 0, 0.0, "wrong_answer", 30),
    row(0, 1, 1.0, "passed", 20),
    row(1, 0, None, "error", 40),
    row(1, 1, 1.0, "passed", 10),
]


def order_of(order: str, verdict: str = "") -> list[tuple[int, int]]:
    return [(r["group"], r["index"]) for r in views.sample_rows(ROWS, verdict, order)["rows"]]


def test_rollouts_are_ordered_and_one_that_was_not_judged_is_last_either_way() -> None:
    assert order_of("group") == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert order_of("reward") == [(0, 1), (1, 1), (0, 0), (1, 0)]
    assert order_of("worst") == [(0, 0), (0, 1), (1, 1), (1, 0)]
    assert order_of("longest") == [(1, 0), (0, 0), (0, 1), (1, 1)]


def test_verdicts_are_counted_over_all_and_rows_are_of_the_chosen_one() -> None:
    document = views.sample_rows(ROWS, "passed")
    assert document["verdicts"] == {"passed": 2, "wrong_answer": 1, "error": 1}
    assert (document["total"], order_of("group", "passed")) == (2, [(0, 1), (1, 1)])


def test_each_rollout_of_a_step_is_on_a_page() -> None:
    rows = [row(n // 16, n % 16, 1.0, "passed" if n else "error") for n in range(1201)]

    def page(offset: int, verdict: str = "") -> tuple[int, int, list[tuple[int, int]]]:
        found = views.sample_rows(rows, verdict, offset=offset)
        return found["offset"], found["total"], [(r["group"], r["index"]) for r in found["rows"]]

    places = [(n // 16, n % 16) for n in range(1201)]
    assert page(0) == (0, 1201, places[:500])
    assert page(500) == (500, 1201, places[500:1000])
    assert page(1000) == page(10**15) == (1000, 1201, places[1000:])
    assert page(500, "error") == (0, 1, places[:1]), "a page of another choice"
    assert page(500, "none") == (0, 0, [])


def attempt(ordinal: int, code: int | None, reason: str = "Completed") -> Attempt:
    left = None if code is None else ExitRecord(code=code, reason=reason, message="why", step=7)
    ended = None if left is None else ONE
    return Attempt("short", ordinal, claimed=NOON, exit=left, logs=(), ended=ended, seen=ONE)


def test_each_attempt_says_how_it_ended() -> None:
    run = run_of(
        ordinal=5, attempt={"ordinal": 5, "stageIndex": 0, "name": "x", "state": "Running", "intendedTime": NOON}
    )
    found = [attempt(1, 75, "Drained"), attempt(2, 1, "OutOfMemory"), attempt(3, None), attempt(4, 0), attempt(5, None)]
    rows = views.attempt_rows(run, found)
    assert [r["state"] for r in rows] == ["Stopped", "Failed", "Lost", "Complete", "Running"]
    assert (rows[1]["reason"], rows[1]["message"], rows[1]["step"]) == ("OutOfMemory", "why", 7)
    assert (rows[2]["ended"], rows[4]["ended"]) == ("2026-05-01T13:00:00Z", None)


def test_an_attempt_that_is_over_does_not_run_while_its_pods_are_removed() -> None:
    live = {"ordinal": 1, "stageIndex": 0, "name": "x", "intendedTime": NOON}
    draining = run_of(ordinal=1, attempt=live | {"state": "Draining"})
    assert [r["state"] for r in views.attempt_rows(draining, [attempt(1, None)])] == ["Draining"]
    over = live | {"state": "Leaving", "endedTime": ONE, "reason": "NodeLost", "evidence": "node n is gone"}
    (row,) = views.attempt_rows(run_of(ordinal=1, attempt=over), [attempt(1, None)])
    assert (row["state"], row["ended"]) == ("Leaving", "2026-05-01T13:00:00Z")
    assert (row["reason"], row["message"]) == ("NodeLost", "node n is gone")


def test_an_exit_record_that_cannot_be_read_is_not_taken_for_a_lost_head() -> None:
    unread = Attempt("short", 1, claimed=NOON, exit=None, logs=(), ended=ONE, seen=ONE)
    (row,) = views.attempt_rows(run_of(ordinal=1), [unread])
    assert (row["state"], "cannot read" in row["message"]) == ("Unknown", True)


def test_gpu_time_and_cost_include_pods_that_still_run() -> None:
    """The status counts an attempt when it is settled: a run in its first attempt would have used nothing for days."""
    pod = {"name": "a", "ordinal": 1, "gpus": 8, "scheduledTime": NOON, "perGpuHour": "2"}
    used = {"gpuSeconds": "3600", "wastedGpuSeconds": "1800", "estimatedCost": "2", "pods": [pod]}
    page = views.run_page(run_of(phase="Running", usage=used), ONE)
    assert page["usage"] == {
        "gpuSeconds": 9 * 3600,
        "wastedGpuSeconds": 1800,
        "sandboxSeconds": 0,
        "cost": 2 + 16,
        "estimated": False,
    }


def test_figures_of_a_trainer_that_no_longer_reports_are_old() -> None:
    progress = {"display": "3/9", "time": NOON}
    page = views.run_page(run_of(phase="Running", progress=progress), ONE)
    assert (page["reported"], page["silentSeconds"]) == ("2026-05-01T12:00:00Z", 3600)
    assert views.run_page(run_of(phase="Running", progress=progress), NOON)["silentSeconds"] is None
    assert views.run_page(run_of(phase="Held", progress=progress), ONE)["silentSeconds"] is None
    assert views.run_page(run_of(), ONE)["reported"] is None


def test_an_attempt_that_has_stored_nothing_yet_is_there() -> None:
    run = run_of(
        ordinal=1, attempt={"ordinal": 1, "stageIndex": 1, "name": "x", "state": "Starting", "intendedTime": NOON}
    )
    (only,) = views.attempt_rows(run, [])
    assert (only["stage"], only["state"], only["started"]) == ("long", "Starting", "2026-05-01T12:00:00Z")


def test_what_is_sent_names_no_secret_no_template_and_no_environment() -> None:
    run = run_of()
    text = json.dumps(views.run_page(run, NOON))
    reference = run.spec.checkpoint.s3.credentials_secret_ref
    assert reference is not None
    for forbidden in (reference.name, "template", "containers", "env", "credentials"):
        assert forbidden not in text, forbidden


def test_what_people_should_know_first_stands_in_the_list() -> None:
    failed = {
        "type": "Failed",
        "status": "True",
        "reason": "X",
        "message": "stage short failed",
        "lastTransitionTime": NOON,
    }
    refused = {"type": "Accepted", "status": "False", "reason": "X", "message": "no Secret", "lastTransitionTime": NOON}
    progressing = {
        "type": "Progressing",
        "status": "False",
        "reason": "X",
        "message": "again in 60 s",
        "lastTransitionTime": NOON,
    }
    assert views.run_row(run_of(phase="Failed", conditions=[failed]))["message"] == "stage short failed"
    assert views.run_row(run_of(phase="Pending", conditions=[refused]))["message"] == "no Secret"
    assert views.run_row(run_of(phase="Backoff", conditions=[progressing]))["message"] == "again in 60 s"
    assert views.run_row(run_of(phase="Starting", conditions=[progressing]))["message"] == "again in 60 s"
    assert views.run_row(run_of(phase="Running", conditions=[progressing]))["message"] == ""


def test_a_pool_is_shown_by_its_figures_alone() -> None:
    status = {"readyReplicas": 2, "slots": 16, "busySlots": 5, "queueDepth": 1, "selector": "x=y"}
    spec = {"minReplicas": 1, "maxReplicas": 4, "template": {"spec": {}}}
    pool = {"metadata": {"name": "p"}, "spec": spec, "status": status}
    assert views.pool_document(pool)["pool"] == {
        "name": "p",
        "spec": {"minReplicas": 1, "maxReplicas": 4},
        "status": {k: v for k, v in status.items() if k != "selector"} | {"avoidedNodes": []},
    }
    assert views.pool_document(None)["pool"] is None


def test_nodes_that_a_pool_avoids_are_shown_with_the_last_words_of_its_judges() -> None:
    shown = {"name": "bad", "since": "2026-05-01T12:00:00Z", "message": "exit code 64: no Landlock"}
    pool = {"metadata": {"name": "p"}, "status": {"avoidedNodes": [shown | {"templateHash": "0"}]}}
    assert views.pool_document(pool)["pool"]["status"]["avoidedNodes"] == [shown]


def test_evaluations_are_read_by_the_names_that_they_are_stored_under() -> None:
    half = {"mean": 0.5, "low": 0.1, "high": 0.9}
    figures = {
        "passAt1": half,
        "passAtK": {"2": half},
        "truncatedRatio": 0.25,
        "responseTokensMean": 41.0,
        "problems": 4,
    }
    rated = {"codeforces": {"rating": {"mean": 1500}}, "notes": ["one contest"], "unjudged": 1}
    results = {
        "key": "sha256:e",
        "inputs": {"targets": [{"name": "late"}, {"name": "Base"}]},
        "targets": {"Base": {"set": figures}, "late": {"set": figures | rated}},
        "comparisons": [{"dataset": "set"}],
    }
    stored: Any = SimpleNamespace(results=results)
    document = views.evaluations_document([stored])
    late, base = document["evaluations"]
    assert (late["target"], base["target"]) == ("late", "Base"), "as they were named"
    assert {name: base[name] for name in figures} == figures
    assert (base["rating"], base["notes"]) == (None, [])
    assert (late["rating"], late["notes"], late["unjudged"]) == ({"mean": 1500}, ["one contest"], 1)
    assert document["comparisons"] == [{"dataset": "set"}]


def test_the_page_of_a_run_has_its_settings_and_no_template_nor_the_name_of_a_secret() -> None:
    container = {"name": "ray-head", "env": [{"name": "PRINTED", "value": "in-a-template"}]}
    example = run_of().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    stage = example["stages"][0] | {"resources": {"head": {"template": {"spec": {"containers": [container]}}}}}
    hidden = {"credentialsSecretRef": {"name": "named-secret"}}
    spec = example | {
        "model": {"uri": "hf://a/b", "revision": "main", **hidden},
        "stages": [stage],
        "checkpoint": {"s3": example["checkpoint"]["s3"] | hidden},
        "sandbox": {"together": hidden},
    }
    metadata = {"namespace": "team", "name": "demo", "uid": "u"}
    run = DeepCoderRun.model_validate({"metadata": metadata, "spec": spec, "status": {}})
    page = views.run_page(run, datetime.now(UTC))
    assert page["settings"]["model"] == {"uri": "hf://a/b", "revision": "main"}
    assert page["settings"]["stages"][stage["name"]]["contextTokens"] == stage["contextTokens"]
    shown = views.encoded(page)
    assert [word for word in (b"named-secret", b"in-a-template", b"PRINTED") if word in shown] == []
