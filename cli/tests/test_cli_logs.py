"""Logs of pods and of the live driver, against a server that answers as an API server and a kubelet do."""

import asyncio
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from deepcoder_cli.__main__ import main
from deepcoder_cli.commands import logs
from deepcoder_client.client import Client
from deepcoder_client.driver_log import NOTHING_YET
from deepcoder_client.run_folder import Attempt, RunFolder

UID = "0f0e0d0c-0000-4000-8000-000000000000"
STDOUT = b"\x01"


def a_run(**attempt: Any) -> dict[str, Any]:
    live = {"ordinal": 2, "stageIndex": 0, "name": "demo-s0-a2", "intendedTime": "2026-01-01T00:00:00Z", **attempt}
    return {
        "metadata": {"namespace": "team", "name": "demo", "uid": UID, "resourceVersion": "5"},
        "spec": {
            "model": {"uri": "/models/demo"},
            "dataset": {"uri": "/data/train.jsonl"},
            "stages": [{"name": "short", "contextTokens": 64, "maxSteps": 20}],
            "sandbox": {"template": {}},
            "checkpoint": {"s3": {"bucket": "deepcoder", "credentialsSecretRef": {"name": "s3"}}},
        },
        "status": {"phase": "Running", "ordinal": 2, "attempt": live},
    }


def a_pod(name: str, *containers: str) -> dict[str, Any]:
    named = [{"name": container} for container in containers]
    return {"metadata": {"name": name, "namespace": "team"}, "spec": {"containers": named}}


class Cluster:
    """A run with a head, two samplers (into which a mesh has put a container) and a judge, whose logs are as given."""

    def __init__(self) -> None:
        self.run = a_run()
        self.logs = {"sampler-a": "one\ntwo\n", "sampler-b": "three\n", "judge-0": "verdict\n"}
        self.starting: dict[str, int] = {}
        """How often each pod's log is asked for before it has started."""
        self.placed: dict[str, Any] = {}
        self.verbs = {"get", "create"}
        self.refusing = False
        self.commands: list[list[str]] = []
        self.queries: list[dict[str, str]] = []
        self.selectors: list[str] = []
        self.head: dict[str, Any] = {}
        self.printed: list[bytes] = [b"step 1\nst", b"ep 2\n", b"last"]
        self.ended: dict[str, Any] = {"status": "Success"}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path.endswith("/exec"):
            return await self._exec(request)
        if path.endswith("/log"):
            self.queries.append(dict(request.query))
            if self.starting.get(name := path.split("/")[-2]):
                self.starting[name] -= 1
                said = f'container "ray-worker" in pod "{name}" is waiting to start: ContainerCreating'
                return web.json_response({"kind": "Status", "code": 400, "message": said}, status=400)
            return web.Response(text=self.logs[path.split("/")[-2]])
        if path.endswith("/selfsubjectaccessreviews"):
            asked = (await request.json())["spec"]["resourceAttributes"]
            return web.json_response({"status": {"allowed": asked["verb"] in self.verbs}})
        if path.endswith("/pods"):
            selector = request.query["labelSelector"]
            self.selectors.append(selector)
            items = [a_pod("head", "ray-head") | self.head] if "role=head" in selector else []
            items = (
                [a_pod(f"sampler-{x}", "istio-proxy", "ray-worker") | self.placed for x in "ba"]
                if "role=sampler" in selector
                else items
            )
            items = [a_pod("judge-0", "judge")] if "pool=demo-sandbox" in selector else items
            return web.json_response({"metadata": {}, "items": items})
        if "/pods/" in path:
            return web.json_response(a_pod(path.split("/")[-1], "ray-worker"))
        return web.json_response(self.run)

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        if self.refusing:
            return web.Response(status=403)
        self.commands.append(request.query.getall("command"))
        socket = web.WebSocketResponse(protocols=("v5.channel.k8s.io", "v4.channel.k8s.io"))
        await socket.prepare(request)
        for part in self.printed:
            await socket.send_bytes(STDOUT + part)
        await socket.send_bytes(b"\x03" + json.dumps(self.ended).encode())
        await socket.close()
        return socket


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(20)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(application)
    call(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    call(site.start())
    port = runner.addresses[0][1]
    config = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "current-context": "c",
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    yield made
    call(runner.cleanup())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    loop.close()


Read = Callable[[], str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Read:
    return lambda: capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--follow"]])
def test_the_live_drivers_log_is_read_within_its_head(cluster: Cluster, printed: Read, more: list[str]) -> None:
    assert main(["logs", "demo", "--tail", "7", *more]) == 0
    assert printed().splitlines() == ["step 1", "step 2", "last"]
    ((shell, flag, program),) = cluster.commands
    assert (shell, flag) == ("sh", "-c")
    assert program.endswith(f'exec tail -n 7 {"-F " if more else ""}"$@"')
    assert "/tmp/ray/session_latest/logs/job-driver-*.log" in program


def test_a_trainer_that_has_not_begun_is_said(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    causes = [{"reason": "ExitCode", "message": str(NOTHING_YET)}]
    cluster.printed = []
    cluster.ended = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
    assert main(["logs", "demo"]) == 3
    assert "the trainer has not begun in pod head: -f waits for it" in capsys.readouterr().err


def test_a_head_that_does_not_run_yet_is_said_and_not_looked_into(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.head = {"status": {"phase": "Pending"}}
    assert main(["logs", "demo", "-f"]) == 3
    assert "pod head is Pending: `kubectl deepcoder status demo` says what it waits for" in capsys.readouterr().err
    assert cluster.commands == []


def test_what_a_trainer_prints_cannot_steer_the_terminal(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.printed = [b"reward \x1b]52;c;cm0=\x07 \x1b[32m0.5\x1b[0m\n"]
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", shown)
    assert main(["logs", "demo"]) == 0
    assert shown.getvalue() == "reward \\x1b]52;c;cm0=\\x07 0.5\n"


def test_a_log_in_a_pipe_is_what_was_printed(cluster: Cluster, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    cluster.printed = [b"\x1b[32m10%\r20%\x1b[0m\n"]
    assert main(["logs", "demo"]) == 0
    assert capfdbinary.readouterr().out == b"\x1b[32m10%\r20%\x1b[0m\n"


def test_a_letter_that_comes_in_two_pieces_is_whole(cluster: Cluster, printed: Read) -> None:
    """A kubelet cuts what it reads every so many bytes, wherever that is."""
    dash = "–".encode()
    cluster.printed = [b"a " + dash[:1], dash[1:] + b" b\n"]
    assert main(["logs", "demo"]) == 0
    assert printed() == "a – b\n"


@pytest.mark.parametrize("missing", ["get", "create"])
def test_who_may_not_look_into_the_head_is_told_so(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    cluster.verbs.remove(missing)
    assert main(["logs", "demo"]) == 4
    assert f"you lack the permission to {missing} pods/exec in namespace team" in capsys.readouterr().err
    assert cluster.commands == []


def test_a_head_that_the_api_server_refuses_to_look_into_is_a_missing_permission(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.refusing = True
    assert main(["logs", "demo"]) == 4
    assert "you lack the permission to create pods/exec in namespace team" in capsys.readouterr().err


def test_lines_of_several_pods_have_their_pods_name(cluster: Cluster, printed: Read) -> None:
    assert main(["logs", "demo", "samplers", "--tail", "50"]) == 0
    assert printed().splitlines() == ["[sampler-a] one", "[sampler-a] two", "[sampler-b] three"]
    assert cluster.queries[0] == {"container": "ray-worker", "tailLines": "50"}


def test_pods_are_followed_side_by_side_until_all_have_ended(cluster: Cluster, printed: Read) -> None:
    assert main(["logs", "demo", "samplers", "-f"]) == 0
    assert sorted(printed().splitlines()) == ["[sampler-a] one", "[sampler-a] two", "[sampler-b] three"]
    assert all(query["follow"] == "true" for query in cluster.queries)


def test_a_pod_that_has_not_started_is_named_and_costs_no_other(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.starting = {"sampler-a": 1}
    assert main(["logs", "demo", "samplers"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["[sampler-b] three"]
    assert 'note: container "ray-worker" in pod "sampler-a" is waiting to start: ContainerCreating\n' in shown.err


def test_a_pod_that_has_not_started_is_followed_once_it_has(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "RETRY_SECONDS", 0.01)
    cluster.starting = {"sampler-a": 2}
    assert main(["logs", "demo", "samplers", "-f"]) == 0
    shown = capsys.readouterr()
    assert sorted(shown.out.splitlines()) == ["[sampler-a] one", "[sampler-a] two", "[sampler-b] three"]
    assert shown.err.count("ContainerCreating; waiting for it") == 1


@pytest.mark.parametrize("placed", [True, False])
def test_where_no_pod_has_started_there_is_no_log(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], placed: bool
) -> None:
    """An API server gives an empty log of a pod without a node, as of one that has ended."""
    cluster.starting = {"sampler-a": 1, "sampler-b": 1}
    cluster.placed = {} if placed else {"status": {"phase": "Pending"}}
    assert main(["logs", "demo", "samplers"]) == 3
    told = capsys.readouterr().err
    assert ("is waiting to start" if placed else "note: pod sampler-a is not on a node yet") in told
    assert "no pod of samplers has started: `kubectl deepcoder status demo` says what they wait for" in told


def test_a_judges_log_is_its_parents(cluster: Cluster, printed: Read) -> None:
    assert main(["logs", "demo", "judge"]) == 0
    assert printed() == "verdict\n"
    assert cluster.queries[0]["container"] == "judge"


def test_a_part_without_pods_is_said(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "demo", "learners"]) == 3
    assert "has no pod of learners now" in capsys.readouterr().err


def test_a_run_that_has_had_no_attempt_is_said(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.run["status"] = {"phase": "Pending"}
    assert main(["logs", "demo"]) == 3
    assert "has had no attempt yet" in capsys.readouterr().err


def test_pods_of_an_earlier_attempt_are_not_read(cluster: Cluster, printed: Read) -> None:
    """They may still be there while the next attempt starts."""
    assert main(["logs", "demo", "samplers"]) == 0
    assert all("deepcoder.dev/ordinal=2" in selector for selector in cluster.selectors)
    assert cluster.selectors


def test_a_pod_that_cannot_be_followed_ends_the_command_with_its_error(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    del cluster.logs["sampler-b"]
    assert main(["logs", "demo", "samplers", "-f"]) == 6
    assert "the API server answers 500" in capsys.readouterr().err


@pytest.mark.parametrize(("tail", "lines"), [("2", ["two", "three"]), ("9", ["one", "two", "three"]), ("0", [])])
def test_without_a_live_attempt_the_end_of_the_last_ones_log_is_shown(
    cluster: Cluster, tail: str, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del cluster.run["status"]["attempt"]
    attempts = [Attempt("short", ordinal, None, None, ("driver.log",)) for ordinal in (1, 2)]
    monkeypatch.setattr(RunFolder, "attempts", lambda folder: attempts)
    monkeypatch.setattr(RunFolder, "read_log", lambda folder, stage, ordinal, name: {2: "one\ntwo\nthree\n"}[ordinal])
    monkeypatch.setattr(Client, "folder", lambda client, run, endpoint: RunFolder(None, "k", run))  # type: ignore[arg-type]
    assert main(["logs", "demo", "--tail", tail]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == lines
    assert "this is the end of attempt 2's log" in shown.err
