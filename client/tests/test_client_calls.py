"""Calls against a server that answers as an API server does: errors in classes, deadlines, and what is tried again."""

import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import urllib3
from kubernetes import client as kubernetes

from deepcoder_client import connection, deep_json
from deepcoder_client.client import Client
from deepcoder_client.connection import Connection
from deepcoder_client.errors import Conflict, Forbidden, NotFound, NotInTime, Refused, Unreachable
from deepcoder_client.permissions import Right

Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]
Asked = list[tuple[str, str, Any]]
RUN: dict[str, Any] = {
    "metadata": {
        "namespace": "team",
        "name": "demo",
        "uid": "0f0e0d0c-0000-4000-8000-000000000000",
        "resourceVersion": "5",
    },
    "spec": {
        "model": {"uri": "/models/demo"},
        "dataset": {"uri": "/data/train.jsonl"},
        "stages": [{"name": "short", "contextTokens": 64, "maxSteps": 20, "hold": True}],
        "sandbox": {"template": {}},
        "checkpoint": {"s3": {"bucket": "deepcoder", "credentialsSecretRef": {"name": "s3"}}},
    },
    "status": {"phase": "Running"},
}


def refusal(code: int, message: str) -> Answer:
    return code, {"kind": "Status", "code": code, "message": message}


class Server:
    """Answers from a list, the last of it again and again; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: Asked = []
        self.answers: list[Answer | Callable[[], Answer]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                server.asked.append((self.command, self.path, body))
                answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                status, told, *headers = answer() if callable(answer) else answer
                content = told if isinstance(told, bytes) else json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PATCH = do_POST = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def client(self, timeout: float = 5.0) -> Client:
        configuration = kubernetes.Configuration()
        configuration.host = f"http://127.0.0.1:{self.http.server_port}"
        return Client(connection=Connection(configuration, "team", timeout))


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


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


@pytest.mark.parametrize("body", [b"", b'{"type": "ERROR", "object": {"code": 500}}\n'])
def test_watches_that_the_server_ends_at_once_are_not_asked_for_in_a_hot_loop(server: Server, body: bytes) -> None:
    def answer() -> Answer:
        if "watch=true" in server.asked[-1][1]:
            return 200, body
        return 200, {"metadata": {"resourceVersion": "5"}, "items": []}

    server.answers = [answer]
    assert list(server.client().watch("demo", seconds=1.5)) == []
    assert len(server.asked) < 12


def test_a_watch_tells_what_is_there_then_changes_and_goes_on_from_a_new_list_where_its_version_is_too_old(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepcoder_client.client.POLL_SECONDS", 0.05)

    def version(number: int, **status: Any) -> dict[str, Any]:
        return {**RUN, "metadata": {**RUN["metadata"], "resourceVersion": str(number)}, "status": status}

    def events(*changes: dict[str, Any]) -> bytes:
        return b"".join(json.dumps(change).encode() + b"\n" for change in changes)

    def listing(number: int, *items: dict[str, Any]) -> Answer:
        return 200, {"metadata": {"resourceVersion": str(number)}, "items": list(items)}

    running, over = version(6, phase="Running"), version(9, phase="Complete")
    expired = {"type": "ERROR", "object": {"code": 410}}
    server.answers = [
        listing(5, version(5, phase="Pending")),
        (200, events({"type": "MODIFIED", "object": running})),
        (200, events(expired)),
        listing(9, over),
        (200, events(expired)),
        listing(10),
    ]
    told = []
    for change in server.client().watch("demo", seconds=20):
        told.append((change.type, str(change.run.status.phase)))
        if change.type == "DELETED":
            break
    assert told == [("ADDED", "Pending"), ("MODIFIED", "Running"), ("MODIFIED", "Complete"), ("DELETED", "Complete")]
    watches = [path for _, path, _ in server.asked if "watch=true" in path]
    assert "resourceVersion=6" in watches[1]


def test_a_watch_without_even_bookmarks_is_dead_and_opened_again_from_what_was_seen(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection broke without a word, and what follows it would be old by then."""
    monkeypatch.setattr("deepcoder_client.client.POLL_SECONDS", 0.05)
    asked: list[tuple[Any, float]] = []

    def lines(kind: object, place: object, right: object, query: dict[str, Any], *, idle: float) -> Iterator[str]:
        asked.append((query["resourceVersion"], idle))
        later = {**RUN, "metadata": {**RUN["metadata"], "resourceVersion": str(5 + len(asked))}}
        yield json.dumps({"type": "MODIFIED", "object": later})
        return True

    server.answers = [(200, {"metadata": {"resourceVersion": "5"}, "items": []})]
    client = server.client()
    monkeypatch.setattr(client.connection, "lines", lines)
    changes = client.watch("demo", seconds=3600)
    assert [next(changes).run.metadata.resource_version for _ in range(3)] == ["6", "7", "8"]
    assert [version for version, _ in asked] == ["5", "6", "7"]
    assert max(idle for _, idle in asked) <= 120, "bookmarks arrive about once a minute"


def test_a_list_is_read_to_its_last_page(server: Server) -> None:
    second = {**RUN, "metadata": {**RUN["metadata"], "name": "another"}}
    server.answers = [
        (200, {"metadata": {"continue": "more"}, "items": [RUN]}),
        (200, {"metadata": {}, "items": [second]}),
    ]
    assert [run.metadata.name for run in server.client().list()] == ["another", "demo"]
    assert "continue=more" in server.asked[1][1]


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


def test_a_log_that_was_quiet_for_minutes_is_followed_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge without work prints nothing, and `logs -f` promises its output until the pod ends."""
    said = iter([(["one"], True), ([], True), (["two"], False)])
    asked: list[dict[str, Any]] = []

    def lines(kind: object, namespace: str, right: object, query: dict[str, Any], path: str) -> Iterator[str]:
        asked.append(dict(query))
        told, silent = next(said)
        yield from told
        return silent

    client = server.client()
    monkeypatch.setattr(client.connection, "lines", lines)
    assert list(client.pod_log("team", "judge-0", follow=True, tail=7)) == ["one", "two"]
    assert asked == [
        {"follow": "true", "tailLines": 7},
        {"follow": "true", "sinceSeconds": 300},
        {"follow": "true", "sinceSeconds": 300},
    ]


def test_a_quiet_log_ends_where_its_pod_has_gone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(kind: object, namespace: str, right: object, query: dict[str, Any], path: str) -> Iterator[str]:
        if "sinceSeconds" in query:
            raise NotFound("no pods judge-0")
        yield "one"
        return True

    client = server.client()
    monkeypatch.setattr(client.connection, "lines", lines)
    assert list(client.pod_log("team", "judge-0", follow=True)) == ["one"]


def test_a_log_that_is_not_followed_and_falls_silent_is_not_taken_for_a_whole_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node may hang; a script would take the lines until then for all of them."""

    def lines(kind: object, namespace: str, right: object, query: dict[str, Any], path: str) -> Iterator[str]:
        yield "one"
        return True

    client = server.client()
    monkeypatch.setattr(client.connection, "lines", lines)
    told = client.pod_log("team", "judge-0")
    assert next(told) == "one"
    with pytest.raises(Unreachable, match="judge-0"):
        next(told)


@pytest.mark.parametrize("headers", [True, False], ids=["after a line", "before any"])
def test_a_silent_stream_is_told_from_one_that_ended(headers: bool) -> None:
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if headers:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\none\n")
            if "end" not in self.path:
                over.wait(30)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    configuration = kubernetes.Configuration()
    configuration.host = f"http://127.0.0.1:{http.server_port}"
    opened, right = Connection(configuration, "team"), Right("get", "pods/log", "", "team")

    def heard(path: str, idle: float) -> tuple[list[str], bool]:
        stream, told = opened.lines(connection.PODS, "team", right, {}, path, idle=idle), list[str]()
        while True:
            try:
                told.append(next(stream))
            except StopIteration as end:
                return told, end.value

    try:
        told, silent = heard("/quiet", 1.0)
        assert silent
        assert told in (["one"], []), "what is slower than the second counts as silence"
        if headers:
            assert heard("/end", 30.0) == (["one"], False)
    finally:
        over.set()
        http.shutdown()
        http.server_close()
