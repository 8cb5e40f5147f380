"""Sets named by `hf://`: from a hub on this machine that speaks the hub's own protocol, and from the cache alone."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
from curation_world import livecodebench_row, mathematics_row, taco_row

from deepcoder_contracts.stage import ModelSource
from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.running.exit_records import failed

COMMIT = "c0ffee" * 6 + "c0ff"


class Hub:
    """Repositories of data sets by name, each a mapping of paths to bytes; `asked` are the paths of all requests."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.asked: list[str] = []
        self.faults: list[str] = []
        """What befalls the next answers that have a body: their connection is cut in its middle, or a status."""
        self.signs = False
        """Whether files lie elsewhere, at addresses that are good for whoever has them."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(request.path).path).strip("/")
        self.asked.append(path)
        elsewhere, path = path.startswith("elsewhere/"), path.removeprefix("elsewhere/")
        fault = self.faults.pop(0) if body and self.faults else ""
        if fault.isdecimal():
            request.send_response(int(fault))
            request.send_header("Retry-After", "7")
            if fault == "401":
                request.send_header("X-Error-Message", "Invalid credentials in Authorization header")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        parts = path.split("/")
        content, kind, missing = None, "application/json", "RepoNotFound"
        if parts[:4] == ["api", "models", "org", "model"]:
            missing = "RevisionNotFound"
        elif parts[:2] == ["api", "datasets"]:
            files = self.repositories.get("/".join(parts[2:4]))
            if files is not None and parts[4:5] == ["revision"]:
                siblings = [{"rfilename": name} for name in files]
                content = json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings}).encode()
            elif files is not None and parts[4:5] == ["tree"]:
                tree = [{"type": "file", "path": n, "size": len(c), "oid": digest(c)} for n, c in files.items()]
                content = json.dumps(tree).encode()
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            content = self.repositories.get("/".join(parts[1:3]), {}).get("/".join(parts[5:]))
            kind, missing = "application/octet-stream", "EntryNotFound"
        signed = self.signs and not elsewhere and content is not None and not body
        request.send_response(404 if content is None else 302 if signed else 200)
        if signed:
            request.send_header("Location", f"{self.url}/elsewhere/{path}?Signature=marked-value")
        if content is None:
            request.send_header("X-Error-Code", missing)
        content = content or b""
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{digest(content)}"')
        request.end_headers()
        if fault == "cut":
            request.wfile.write(content[: len(content) // 2])
            request.wfile.flush()
            linger = struct.pack("ii", 1, 0)  # closing resets the connection, as a broken load balancer's does
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            request.connection.close()
        elif body:
            request.wfile.write(content)


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub(
        {
            "org/TACO-verified": {"README.md": b"# A set\n", "data/train.jsonl": lines(taco_row())},
            "org/lcb": {"test.jsonl": lines(livecodebench_row()), "test5.jsonl": lines(livecodebench_row())},
            "org/math": {"test/aime.json": json.dumps([mathematics_row()]).encode()},
        }
    )
    yield made
    made.server.shutdown()


def test_sets_are_read_from_a_hub_and_once_fetched_without_it(tmp_path: Path, hub: Hub) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}

    def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
        whole = [sys.executable, *command]
        return subprocess.run(whole, env=environment | more, check=False, capture_output=True, text=True, timeout=300)

    inputs = ("taco=hf://org/TACO-verified", "lcb=hf://org/lcb/test5.jsonl")
    options = ["--against", "math=hf://org/math/test", "--judge-workers", "1", "--output-dir", str(tmp_path / "out")]
    done = run("-m", "deepcoder_trainer", "curate", *inputs, *options)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["kept"] == {"taco": 1, "livecodebench": 1}
    assert [i["uri"] for i in report["inputs"]] == ["hf://org/TACO-verified", "hf://org/lcb/test5.jsonl"]
    fetched = [path for path in hub.asked if "/resolve/" in path]
    assert not any(path.endswith("/test.jsonl") for path in fetched), "one file was named, and one is fetched"

    fetch = (
        "import sys; from deepcoder_trainer.checkpoint.sources import Sources; print(Sources().dataset(sys.argv[1]))"
    )
    hub.server.shutdown()
    offline = run("-c", fetch, "hf://org/lcb/test5.jsonl", HF_HUB_OFFLINE="1")
    assert Path(offline.stdout.strip()).read_bytes() == lines(livecodebench_row()), offline.stderr


@pytest.fixture
def sources(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """From the hub, with an empty cache."""
    template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
        huggingface_hub.constants.ENDPOINT, hub.url
    )
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    return Sources(cache=tmp_path)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, at once."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("hf://org/nothing", "hf://org/nothing: the hub has no such dataset, or it needs a token"),
        ("hf://org/lcb/test7.jsonl", "there is no file test7.jsonl in org/lcb"),
        ("hf://org/--no--", "org/--no-- is no name of a repository"),
    ],
)
def test_what_no_hub_has_is_a_mistake_and_told_by_its_name(uri: str, told: str, sources: Sources) -> None:
    with pytest.raises(BadConfig, match=told) as e:
        sources.dataset(uri)
    assert e.value.field == "dataset.uri"


def test_a_revision_that_a_repository_lacks_is_a_mistake(sources: Sources) -> None:
    with pytest.raises(BadConfig, match=r"model\.revision v7: org/model has no such branch, tag or commit") as e:
        sources.model(ModelSource(uri="hf://org/model", revision="v7"))
    assert e.value.field == "model.revision"


FILE_OR_REPOSITORY = pytest.mark.parametrize(
    "uri", ["hf://org/lcb/test5.jsonl", "hf://org/TACO-verified"], ids=["file", "repository"]
)


@FILE_OR_REPOSITORY
def test_a_token_that_the_hub_rejects_is_a_mistake(uri: str, hub: Hub, sources: Sources, pauses: list[float]) -> None:
    """No later attempt would have another: a run that took it for an outage was started again and again."""
    hub.faults = ["401"] * 1000
    with pytest.raises(BadConfig, match=rf"dataset\.uri {uri}: the hub rejects the token in HF_TOKEN") as e:
        sources.dataset(uri)
    assert e.value.field == "dataset.uri"
    assert pauses == []


@FILE_OR_REPOSITORY
def test_what_is_not_in_the_cache_is_a_mistake_where_the_hub_must_not_be_asked(
    uri: str, hub: Hub, sources: Sources, pauses: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = rf"dataset\.uri {uri} is not in the cache {tmp_path}/hf, and HF_HUB_OFFLINE forbids asking"
    with pytest.raises(BadConfig, match=told) as e:
        sources.dataset(uri)
    assert e.value.field == "dataset.uri"
    assert (pauses, hub.asked) == ([], [])


@FILE_OR_REPOSITORY
def test_a_download_that_breaks_off_goes_on(uri: str, hub: Hub, sources: Sources, pauses: list[float]) -> None:
    """A reset connection is none of the failures that huggingface_hub tries again by itself."""
    hub.faults = ["cut"] * 3
    path = sources.dataset(uri)
    found = path if path.is_file() else path / "data/train.jsonl"
    assert found.read_bytes() in (lines(livecodebench_row()), lines(taco_row()))
    assert hub.faults == []
    assert pauses


def test_signed_addresses_are_in_no_log(
    hub: Hub, sources: Sources, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever reads a run's log, or its copy in storage, could fetch a private model with them."""
    caplog.set_level(logging.INFO)
    hub.signs, hub.faults = True, ["429", "429", "cut"]
    assert sources.dataset("hf://org/lcb/test5.jsonl").read_bytes() == lines(livecodebench_row())
    assert any(path.startswith("elsewhere/") for path in hub.asked)
    assert "/elsewhere/datasets/org/lcb" in caplog.text
    assert "marked-value" not in caplog.text


def test_signed_addresses_are_not_in_the_log_of_an_attempt_that_the_hub_ended(
    hub: Hub, sources: Sources, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """An attempt's end is logged with the errors that led to it, and an HTTP library's names the address."""
    hub.signs, hub.faults = True, ["403"] * 1000
    with pytest.raises(StorageUnavailable, match=r"HfHubHTTPError, status 403") as e:
        sources.dataset("hf://org/lcb/test5.jsonl")
    assert failed(e.value, 0).reason == "StorageUnavailable"
    assert "the attempt crashed" in caplog.text
    assert "marked-value" not in caplog.text


def test_a_hub_that_limits_requests_is_left_alone_for_as_long_as_it_says(
    hub: Hub, sources: Sources, pauses: list[float]
) -> None:
    hub.faults = ["429", "429"]
    assert (sources.dataset("hf://org/TACO-verified") / "data/train.jsonl").is_file()
    assert pauses == [7.0, 7.0]


def test_a_disk_without_room_for_a_download_is_no_hub_that_is_away(
    sources: Sources, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(OSError, match=r"No space left on device: 'model.safetensors'") as e:
        sources.dataset("hf://org/lcb/test5.jsonl")
    assert e.value.errno == errno.ENOSPC
    assert pauses == []


def test_a_hub_that_stays_away_is_storage_that_is_away(hub: Hub, sources: Sources, pauses: list[float]) -> None:
    hub.faults = ["503"] * 1000
    with pytest.raises(StorageUnavailable, match=r"hf://org/lcb cannot be fetched from the hub: .*503") as e:
        sources.dataset("hf://org/lcb")
    assert type(e.value) is StorageUnavailable, "by which name an attempt's end is told"
    assert len(pauses) < 100, "within bounded tries"
