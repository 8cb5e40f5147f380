"""The command against an HTTP server that answers as an API server does: exit codes, and errors in words."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.shell_completion import ShellComplete

from deepcoder_cli.__main__ import main
from deepcoder_cli.app import app

Answer = Callable[[str], tuple[int, dict[str, Any]]]
NOT_FOUND = (404, {"kind": "Status", "reason": "NotFound", "code": 404})
RUN = {
    "metadata": {"namespace": "team", "name": "run"},
    "spec": {"stages": [{"name": "short", "contextTokens": 28, "maxSteps": 40}], "sandbox": {"template": {}}},
    "status": {"phase": "Complete"},
}


def kubeconfig(path: Path, server: str, namespace: str = "") -> None:
    context = {"cluster": "c", "user": "u", **({"namespace": namespace} if namespace else {})}
    other = {"cluster": "c", "user": "u", "namespace": "others"}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "chosen", "context": context}, {"name": "other", "context": other}],
        "current-context": "chosen",
    }
    path.write_text(yaml.safe_dump(content))


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer, str], list[str]]]:
    """Start a server with an answer for each path, and name it in KUBECONFIG; returns the paths that were asked for."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer, namespace: str = "") -> list[str]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                status, body = answer(self.path)
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        servers.append(server)
        kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{server.server_port}", namespace)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def a_run(path: str) -> tuple[int, dict[str, Any]]:
    if "/deepcoderruns/" in path:
        return 200, RUN
    return (200, {"items": []}) if path.split("?")[0].endswith("/pods") else NOT_FOUND


@pytest.mark.parametrize("more", [[], ["--watch"]])
def test_a_run_that_is_not_there_is_said_at_once_with_its_own_code(
    more: list[str], serve: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    serve(lambda path: NOT_FOUND)
    assert main(["status", "run", "-n", "team", *more, "--timeout", "20"]) == 3
    assert "no DeepCoderRun run in namespace team" in capsys.readouterr().err


def test_a_run_that_is_deleted_ends_the_watch(
    serve: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def once(path: str) -> tuple[int, dict[str, Any]]:
        seen.append(path)
        status, body = a_run(path) if len(seen) <= 3 else NOT_FOUND
        return status, {**body, "status": {"phase": "Running"}} if body is RUN else body

    serve(once)
    assert main(["status", "run", "-n", "team", "--watch", "--timeout", "20"]) == 3
    assert "team/run was deleted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "namespace"),
    [([], "of-the-context"), (["--context", "other"], "others"), (["-n", "named"], "named")],
)
def test_the_namespace_is_the_contexts_unless_one_is_named(
    arguments: list[str], namespace: str, serve: Callable[..., list[str]]
) -> None:
    asked = serve(a_run, "of-the-context")
    assert main(["status", "run", *arguments]) == 0
    assert {path.split("/namespaces/")[1].split("/")[0] for path in asked} == {namespace}


def test_a_watch_ends_with_the_run(serve: Callable[..., list[str]]) -> None:
    serve(a_run)
    assert main(["status", "run", "--watch", "--timeout", "20"]) == 0


def test_a_run_that_does_not_end_in_time_is_said(
    serve: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    serve(lambda path: (200, {**RUN, "status": {}}) if "/deepcoderruns/" in path else a_run(path))
    assert main(["status", "run", "--watch", "--timeout", "0.5"]) == 1
    assert "did not end within" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, 4, "you lack the permission to get deepcoderruns.deepcoder.dev in namespace default"),
        (401, 6, "log in"),
        (500, 6, "answers 500"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--watch"]])
def test_what_the_api_server_refuses_is_a_line(
    status: int,
    code: int,
    said: str,
    more: list[str],
    serve: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve(lambda path: (status, {"kind": "Status", "code": status}))
    assert main(["status", "run", *more]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--watch"]])
def test_an_api_server_that_does_not_answer_is_said_at_once(
    more: list[str], serve: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(a_run)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{unused.getsockname()[1]}"
        kubeconfig(tmp_path / "kubeconfig", server)
        assert main(["status", "run", *more]) == 6
    said = capsys.readouterr().err
    assert f"the API server {server} does not answer: " in said
    assert "Connection refused; is it up" in said
    assert "HTTPConnection" not in said


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"clusters: [",
        b"apiVersion: v1\nkind: Config\n",
        b"some words",
        b"[1, 2]",
        b"\xff\xfe\x00\x01",
        b"contexts: 7",
        b"{clusters: [{name: c, cluster: {}}], contexts: [{name: x, context: {cluster: c, user: u}}],"
        b" users: [{name: u, user: {}}], current-context: x}",
    ],
)
def test_a_kubeconfig_that_leads_nowhere_is_said_with_the_mend(
    content: bytes, serve: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(a_run)
    (tmp_path / "kubeconfig").write_bytes(content)
    assert main(["status", "run"]) == 6
    assert "Set KUBECONFIG" in capsys.readouterr().err


def test_a_context_that_is_asked_for_needs_no_current_one(
    serve: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(a_run)
    assert main(["status", "run"]) == 0
    whole = yaml.safe_load((tmp_path / "kubeconfig").read_text())
    name = whole.pop("current-context")
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(whole))
    assert main(["status", "run", "--context", name]) == 0
    assert main(["status", "run"]) == 6


def test_a_defect_has_a_code_of_its_own_and_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("metadata")

    monkeypatch.setattr(app, "main", broken)
    assert main(["status", "run"]) == 70
    said = capsys.readouterr().err
    assert "KeyError: 'metadata'" in said
    assert "please report it" in said


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["status", "-n", "te"], ["team"]),
        (["status", "--context", ""], ["chosen", "other"]),
        (["stages", "r"], ["run"]),
        (["stages", "-n", "team", "x"], []),
        (["approve", "run", ""], ["long"]),
    ],
)
def test_a_shell_completes_namespaces_contexts_runs_and_stages_with_a_hold(
    words: list[str], found: list[str], serve: Callable[..., list[str]]
) -> None:
    names = [{"metadata": {"name": name}} for name in ("default", "team")]
    held = {**RUN, "spec": {"stages": [{"name": "short", "hold": False}, {"name": "long", "hold": True}]}}
    answers: dict[str, dict[str, Any]] = {
        "/api/v1/namespaces": {"items": names}, "/deepcoderruns": {"items": [RUN]}, "/deepcoderruns/run": held
    }  # fmt: skip
    serve(
        lambda path: next(
            ((200, answer) for end, answer in answers.items() if path.split("?")[0].endswith(end)), NOT_FOUND
        )
    )
    complete = ShellComplete(app, {}, "kubectl deepcoder", "_UNUSED")
    assert [item.value for item in complete.get_completions(words[:-1], words[-1])] == found


@pytest.mark.parametrize("content", ["", "contexts: 7", "[1]", "clusters: ["])
def test_a_completion_without_a_cluster_is_silent(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kubeconfig").write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    for words in (["status", "-n"], ["status", "--context"], ["stages"], ["approve", "run"]):
        assert ShellComplete(app, {}, "kubectl deepcoder", "_UNUSED").get_completions(words, "") == []
    assert capsys.readouterr() == ("", "")


def test_its_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == metadata.version("deepcoder-cli")


def test_a_command_that_there_is_not_is_answered_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stauts"]) == 2
    assert "unknown command stauts: the commands are status, plan," in capsys.readouterr().err


def test_an_interrupted_watch_is_silent(
    serve: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    serve(a_run)
    monkeypatch.setattr("deepcoder_cli.commands.status.follow", interrupted)
    assert main(["status", "run", "--watch"]) == 130
    assert capsys.readouterr().err.strip() == ""
