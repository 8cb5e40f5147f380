"""kubectl's own options: whoever knows them from kubectl gives them here, before the command or after it."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from urllib3.exceptions import InsecureRequestWarning

from deepcoder_cli.__main__ import main
from deepcoder_cli.app import app
from deepcoder_cli.options import Duration
from deepcoder_client.client import Client


class Server:
    """An API server without runs, that notes what it was asked and as whom."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[tuple[str, str]]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.path, [(k.lower(), v) for k, v in self.headers.items()]))
                content = json.dumps({"metadata": {}, "items": []}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def said(self, *names: str) -> list[tuple[str, str]]:
        """Headers of the last request whose names begin so."""
        return [(name, value) for name, value in self.asked[-1][1] if name.startswith(names)]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    content = {
        "clusters": [{"name": "here", "cluster": {"server": made.url}},
                     {"name": "away", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "admin", "user": {"token": "of-admin"}}, {"name": "other", "user": {"token": "of-other"}}],
        "contexts": [{"name": "x", "context": {"cluster": "here", "user": "admin", "namespace": "team"}},
                     {"name": "y", "context": {"cluster": "away", "user": "admin"}}],
        "current-context": "x",
    }  # fmt: skip
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_one_acts_as_another_user_as_with_kubectl(server: Server, before: bool) -> None:
    given = ["--as", "jane", "--as-group", "a", "--as-group", "b", "--as-uid", "7"]
    assert main([*given, "status"] if before else ["status", *given]) == 0
    assert sorted(server.said("impersonate-")) == [
        ("impersonate-group", "a"),
        ("impersonate-group", "b"),
        ("impersonate-uid", "7"),
        ("impersonate-user", "jane"),
    ]
    assert server.said("authorization") == [("authorization", "Bearer of-admin")]


@pytest.mark.parametrize("option", ["--as-group", "--as-uid"])
def test_groups_without_a_user_are_refused(server: Server, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", option, "x"]) == 2
    assert "name one with --as" in capsys.readouterr().err
    assert server.asked == []


def test_what_stands_after_the_command_counts(server: Server) -> None:
    assert main(["-n", "before", "status", "-n", "after"]) == 0
    assert main(["-n", "before", "status"]) == 0
    assert [path.split("/")[5] for path, _ in server.asked] == ["after", "before"]


def test_server_user_and_token_replace_those_of_the_context(server: Server) -> None:
    for given, token in (
        (["--cluster", "here", "--user", "other"], "of-other"),
        (["-s", server.url], "of-admin"),
        (["--server", server.url, "--token", "mine"], "mine"),
    ):
        assert main(["status", "--context", "y", *given]) == 0
        assert server.said("authorization") == [("authorization", f"Bearer {token}")]


def test_a_plan_has_a_server_option_of_its_own(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    demo = Path(__file__).resolve().parents[2] / "examples" / "demo.yaml"
    assert main(["plan", "-f", str(demo)]) == 0
    assert server.asked == []
    assert main(["--server", "http://127.0.0.1:1", "plan", "-f", str(demo), "--server"]) == 6
    assert "http://127.0.0.1:1 does not answer" in capsys.readouterr().err


def test_whoever_asks_for_no_verification_is_not_warned_of_it_in_pythons_words(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context may say so, too, and each line that a script reads from standard error is taken for trouble."""

    def unverified(*_: object, **__: object) -> list[object]:
        warnings.warn("Unverified HTTPS request", InsecureRequestWarning, stacklevel=1)
        return []

    monkeypatch.setattr(Client, "raw_list", unverified)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert main(["status", "--insecure-skip-tls-verify"]) == 0
    # Only these: Python also warns of what an earlier test left open, when it happens to find it.
    assert [warning for warning in told if issubclass(warning.category, InsecureRequestWarning)] == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("2.5", 2.5), ("30s", 30), ("1m30s", 90), ("500ms", 0.5), ("1h", 3600), ("0", 3600)],
)
def test_a_timeout_is_given_as_to_kubectl(text: str, seconds: float) -> None:
    assert Duration(min=0.1, max=3600).convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "s", "30 s", "1d", "-5", "2h", "1ms", "nan", "inf", "0s1x"])
def test_a_timeout_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration(min=0.1, max=3600).convert(text, None, None)


def test_help_lists_kubectls_options_once_and_each_command_names_the_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    whole = capsys.readouterr().out
    named = [name for option in app.params for name in option.opts if name.startswith("--as") or name == "--context"]
    assert all(name in whole for name in named)
    assert main(["status", "--help"]) == 0
    one = capsys.readouterr().out
    assert "--as-group" not in one
    assert "see kubectl deepcoder --help" in one
    assert "-n, --namespace" in one
