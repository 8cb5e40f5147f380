"""Sets named by `hf://`: from a hub on this machine that speaks the hub's own protocol, and from the cache alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from curation_world import livecodebench_row, mathematics_row, taco_row

from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.errors import BadConfig

COMMIT = "c0ffee" * 6 + "c0ff"


class Hub:
    """Repositories of data sets by name, each a mapping of paths to bytes; `asked` are the paths of all requests."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.asked: list[str] = []
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
        parts = path.split("/")
        content, kind = None, "application/json"
        if parts[:2] == ["api", "datasets"]:
            files = self.repositories.get("/".join(parts[2:4]))
            if files is not None and parts[4:5] == ["revision"]:
                siblings = [{"rfilename": name} for name in files]
                content = json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings}).encode()
            elif files is not None and parts[4:5] == ["tree"]:
                tree = [{"type": "file", "path": n, "size": len(c), "oid": digest(c)} for n, c in files.items()]
                content = json.dumps(tree).encode()
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            content = self.repositories.get("/".join(parts[1:3]), {}).get("/".join(parts[5:]))
            kind = "application/octet-stream"
        request.send_response(404 if content is None else 200)
        if content is None:
            request.send_header("X-Error-Code", "RepoNotFound")
        content = content or b""
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{digest(content)}"')
        request.end_headers()
        if body:
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


def test_a_set_that_no_hub_has_is_told_by_its_name(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    with pytest.raises(BadConfig, match=r"hf://org/nothing: the hub has no such dataset, or it needs a token"):
        Sources(cache=tmp_path).dataset("hf://org/nothing")
