"""Calls against a server that answers as an API server does: errors in classes, deadlines, and what is tried again."""

from __future__ import annotations

import json
import threading
import tracemalloc

import pytest
import urllib3
from scripted_api import RUN, Answer, Server, refusal

from deepcoder_client import connection, deep_json
from deepcoder_client.errors import Conflict, Forbidden, NotFound, NotInTime, Refused, Unknown, Unreachable


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (refusal(404, 'deepcoderruns "demo" not found'), NotFound, "no DeepCoderRun demo in namespace team"),
        (refusal(404, "the server could not find the requested resource"), NotFound, "is the chart installed"),
        ((404, b"404 page not found\n"), NotFound, "knows no deepcoderruns.deepcoder.dev: is the chart installed"),
        ((400, b"Client sent an HTTP request to an HTTPS server.\n"), Unreachable, "answers 400 Bad Request"),
        (
            refusal(403, 'User "system:anonymous" cannot get resource "deepcoderruns"'),
            Unreachable,
            "does not know who you are",
        ),
        (refusal(403, 'User "u" cannot get resource "deepcoderruns"'), Forbidden, "to get deepcoderruns.deepcoder.dev"),
        (refusal(403, "exceeded quota: team"), Refused, "exceeded quota"),
        (refusal(401, "Unauthorized"), Unreachable, "log in"),
        (refusal(500, "etcd"), Unreachable, "answers 500 etcd"),
        ((200, b"<html>"), Unreachable, "cannot be read"),
    ],
)
def test_what_the_server_says_is_an_error_of_its_own(server: Server, answer: Answer, kind: type, told: str) -> None:
    server.answers = [answer]
    with pytest.raises(kind, match=told.replace(".", r"\.")):
        server.client().get("demo")


BUSY: Answer = (*refusal(429, "too many requests, please try again later"), {"Retry-After": "1"})


def test_a_server_that_is_too_busy_is_asked_again_reads_and_changes_alike(server: Server) -> None:
    """Priority and fairness have it refuse before it does anything; kubectl comes again, too."""
    server.answers = [BUSY, (200, RUN), BUSY, BUSY, (200, {**RUN, "spec": {**RUN["spec"], "suspend": True}})]
    assert server.client().suspend("demo").spec.suspend
    assert [method for method, _, _ in server.asked] == ["GET", "GET", "PATCH", "PATCH", "PATCH"]


def test_a_server_that_stays_too_busy_is_said_to_be_so_and_not_to_be_away(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_BUSY_SECONDS", 0.01)
    server.answers = [(*refusal(429, "too many requests"), {"Retry-After": "3600"})]
    with pytest.raises(Unreachable, match="answers 429 too many requests"):
        server.client().get("demo")
    assert len(server.asked) == 4


def test_a_busy_server_is_not_waited_for_beyond_the_call_s_own_timeout(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try had the whole of it: `--timeout 2` took as long as four tries and three pauses."""
    monkeypatch.setattr(connection, "_BUSY_SECONDS", 60.0)
    server.answers = [(*refusal(429, "too many requests"), {"Retry-After": "60"})]
    with pytest.raises(Unreachable, match="answers 429 too many requests"):
        server.client(timeout=50.0).get("demo")
    assert len(server.asked) == 1


def test_what_is_left_of_a_call_s_timeout_is_all_that_another_try_has(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    class Noted(urllib3.Timeout):
        def __init__(self, total: float) -> None:
            given.append(total)
            super().__init__(total=total)

    monkeypatch.setattr(connection.urllib3, "Timeout", Noted)
    monkeypatch.setattr(connection, "_BUSY_SECONDS", 0.5)
    server.answers = [BUSY, BUSY, (200, RUN)]
    server.client(timeout=30.0).get("demo")
    assert len(given) == 3
    assert given[2] <= given[1] - 0.5 <= given[0] - 1.0 <= 29.0


def test_a_change_that_a_server_may_have_made_is_not_sent_again(server: Server) -> None:
    server.answers = [(200, RUN), (*refusal(503, "shutting down"), {"Retry-After": "1"})]
    with pytest.raises(Unreachable, match="answers 503 shutting down"):
        server.client().suspend("demo")
    assert [method for method, _, _ in server.asked] == ["GET", "PATCH"]


def test_a_right_that_an_apply_lacks_is_the_one_that_the_server_names(server: Server) -> None:
    server.answers = [refusal(403, 'User "u" cannot create resource "deepcoderruns" in API group "deepcoder.dev"')]
    with pytest.raises(Forbidden) as error:
        server.client().apply({"apiVersion": "deepcoder.dev/v1alpha1", "kind": "DeepCoderRun", **RUN})
    assert (error.value.right.verb, error.value.right.resource) == ("create", "deepcoderruns")
    assert "deepcoder-operator-edit" in str(error.value)


def test_a_field_of_somebody_elses_is_a_conflict_that_says_how_to_go_on(server: Server) -> None:
    server.answers = [refusal(409, 'Apply failed with 1 conflict: conflict with "kubectl": .spec.suspend')]
    with pytest.raises(Conflict, match=r"spec\.suspend; leave these fields out, or take them over with force"):
        server.client().apply({"apiVersion": "deepcoder.dev/v1alpha1", "kind": "DeepCoderRun", **RUN})
    (method, path, body) = server.asked[0]
    assert method == "PATCH"
    assert "fieldManager=deepcoder-client&force=false&fieldValidation=Strict" in path
    assert body["metadata"] == {"name": "demo", "namespace": "team"}
    assert "status" not in body


def test_a_server_that_is_silent_is_given_up_after_the_deadline(server: Server) -> None:
    asked, given_up = threading.Event(), threading.Event()

    def silent() -> Answer:
        asked.set()
        given_up.wait(60)
        return 200, RUN

    server.answers = [silent]
    with pytest.raises(Unreachable, match="does not answer"):
        server.client(timeout=0.3).get("demo")
    assert asked.wait(60), "it was asked"
    assert len(server.asked) == 1
    given_up.set()


def test_a_change_is_made_anew_from_what_somebody_else_has_changed_meanwhile(server: Server) -> None:
    other = {
        **RUN,
        "spec": {**RUN["spec"], "approvedStages": []},
        "metadata": {**RUN["metadata"], "resourceVersion": "6"},
    }
    done = {**RUN, "spec": {**RUN["spec"], "approvedStages": ["short"]}}
    server.answers = [(200, RUN), refusal(409, "the object has been modified"), (200, other), (200, done)]
    assert server.client().approve("demo", ["short"]).spec.approved_stages == ["short"]
    patches = [body for method, _, body in server.asked if method == "PATCH"]
    assert [p["metadata"]["resourceVersion"] for p in patches] == ["5", "6"]
    assert patches[1]["spec"] == {"approvedStages": ["short"]}


def test_a_change_of_a_run_that_cannot_be_read_says_that_it_was_made(server: Server) -> None:
    """Against a newer cluster: the answer to the change is the first thing that nobody here can read."""
    newer = {**RUN, "spec": {**RUN["spec"], "future": 1}}
    changed = {**newer, "spec": {**newer["spec"], "suspend": True}}
    server.answers = [(200, newer), (200, changed)]
    for _ in range(2):  # the second one finds it suspended
        with pytest.raises(Unknown, match=r"team/demo is as you asked for, but cannot be read: spec\.future: ") as told:
            server.client().suspend("demo")
        assert told.value.changed == changed
    assert [method for method, _, _ in server.asked] == ["GET", "PATCH", "GET"]
    with pytest.raises(Unknown, match="team/demo cannot be read") as untouched:
        server.client().get("demo")
    assert untouched.value.changed is None


def test_a_change_that_is_so_already_sends_nothing(server: Server) -> None:
    server.answers = [(200, RUN)]
    server.client().resume("demo")
    assert [method for method, _, _ in server.asked] == ["GET"]


def test_a_stage_that_there_is_not_is_refused_before_anything_is_sent(server: Server) -> None:
    server.answers = [(200, RUN)]
    with pytest.raises(Refused, match="has no stage tall: its stages are short"):
        server.client().approve("demo", ["tall"])
    assert [method for method, _, _ in server.asked] == ["GET"]


def test_waiting_bridges_an_outage_and_ends_with_the_time_given(server: Server) -> None:
    server.answers = [(200, RUN), refusal(503, "starting"), (200, {**RUN, "status": {"phase": "Complete"}})]
    assert server.client().wait("demo", seconds=20).status.phase == "Complete"
    server.answers = [(200, RUN)]
    with pytest.raises(NotInTime, match="is Running after"):
        server.client().wait("demo", seconds=0.2)


def test_a_list_is_read_to_its_last_page(server: Server) -> None:
    second = {**RUN, "metadata": {**RUN["metadata"], "name": "another"}}
    server.answers = [
        (200, {"metadata": {"continue": "more"}, "items": [RUN]}),
        (200, {"metadata": {}, "items": [second]}),
    ]
    assert [run.metadata.name for run in server.client().list()] == ["another", "demo"]
    assert "continue=more" in server.asked[1][1]


def test_what_is_kept_of_each_object_takes_its_place_in_lists_and_watches(server: Server) -> None:
    """A page is small: each of its objects may have 1.5 MiB, and the page is in memory before the first one is read."""
    other = {**RUN, "metadata": {**RUN["metadata"], "name": "other"}}
    pages = [
        {"items": [RUN], "metadata": {"continue": "more"}},
        {"items": [other], "metadata": {"resourceVersion": "5"}},
    ]
    event = {"type": "DELETED", "object": other}
    text = json.dumps(pages[0], indent=1).encode()
    server.answers = [(200, text), (200, pages[1]), (200, f"{json.dumps(event)}\n".encode()), (200, b"")]
    changes = server.client().raw_watch(seconds=20, keep=lambda run: {"metadata": run["metadata"]})
    told = [next(changes) for _ in range(3)]
    assert [(kind, run["metadata"]["name"], list(run)) for kind, run in told] == [
        ("ADDED", "demo", ["metadata"]), ("ADDED", "other", ["metadata"]), ("DELETED", "other", ["metadata"])
    ]  # fmt: skip
    assert "limit=25" in server.asked[0][1]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"items": [{}', '{"items": [{} {}]}', '{"items": [{}],}', '{"items" []}']
)
def test_a_list_that_is_cut_short_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"character|Expecting|delimiter"):
        deep_json.parsed(text, dict)


def nested(levels: int) -> bytes:
    """A list with a run whose pod template is nested so deeply, as the API server stores it, and another run."""
    deep = {**RUN, "metadata": {**RUN["metadata"], "name": "deep"}}
    deep["spec"] = {**RUN["spec"], "sandbox": {"template": {"template": {"spec": {"marker": "}", "x": "DEEP"}}}}}
    listed = json.dumps({"metadata": {"resourceVersion": "5"}, "items": [deep, RUN]})
    return listed.replace('"DEEP"', '{"a": ["]", ' * levels + '"\\"{"' + "]}" * levels).encode()


def test_a_run_that_is_nested_as_deeply_as_the_api_server_allows_hides_no_other(server: Server) -> None:
    """Whoever may create one run would otherwise take the list, and the dashboard, from everybody."""
    server.answers = [(200, nested(4_000))]
    assert [run.metadata.name for run in server.client().list()] == ["deep", "demo"]
    assert server.client().raw_list(keep=lambda run: run)[1] == RUN
    (deep, _) = server.client().raw_list()
    assert deep["spec"]["sandbox"]["template"]["template"]["spec"]["marker"] == "}"
    watched = [{"type": "ADDED", "object": each} for each in (deep, RUN)]
    event = json.dumps(watched[0]).replace('"marker": "}"', '"marker": ' + "[" * 5_000 + "]" * 5_000)
    listing = {"metadata": {"resourceVersion": "5"}, "items": []}
    server.answers = [(200, listing), (200, f"{event}\n{json.dumps(watched[1])}\n".encode()), (200, b"")]
    changes = server.client().watch(seconds=20)
    assert [next(changes).run.metadata.name for _ in range(2)] == ["deep", "demo"]


def test_long_strings_of_a_deeply_nested_run_take_no_more_memory_than_a_few_copies() -> None:
    """Whoever writes both would otherwise end the dashboard: a hundred bytes were kept for each character."""
    long, deep = "twenty characters, \\n" * 50_000, "[" * 2_000 + "]" * 2_000
    text = f'{{"long": "{long}", "deep": {deep}}}'
    tracemalloc.start()
    try:
        found = deep_json.parsed(text)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found["long"]) == 20 * 50_000
    assert most < 10 * len(text)


def test_a_run_of_another_release_hides_no_other(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    other = {**RUN, "metadata": {**RUN["metadata"], "name": "other"}, "spec": {**RUN["spec"], "novel": 1}}
    server.answers = [(200, {"metadata": {}, "items": [other, RUN]})]
    assert [run.metadata.name for run in server.client().list()] == ["demo"]
    assert "/other cannot be read: spec.novel" in caplog.text


def test_a_run_of_a_newer_release_is_told_with_the_field(server: Server) -> None:
    server.answers = [(200, {**RUN, "spec": {**RUN["spec"], "novel": 1}})]
    with pytest.raises(Exception, match=r"spec\.novel: .*use the cluster's"):
        server.client().get("demo")
    assert server.client().raw("demo")["spec"]["novel"] == 1
