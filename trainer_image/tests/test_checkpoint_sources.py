"""Sources to local paths: copies whole or not at all, changed sources fetched anew, and errors by name of the field."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from deepcoder_contracts.layout import export_dir
from deepcoder_contracts.stage import ModelSource
from deepcoder_trainer.checkpoint import sources, transfer
from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.storage import StoredObject
from deepcoder_trainer.checkpoint.transfer import locked
from deepcoder_trainer.errors import BadConfig


def test_a_local_path_is_itself(tmp_path: Path) -> None:
    assert Sources().model(ModelSource(uri=str(tmp_path))) == tmp_path
    assert Sources().model(ModelSource(uri=f"file://{tmp_path}")) == tmp_path


@pytest.mark.parametrize("uri", ["/no/such/folder", "file:///no/such/folder"])
def test_what_does_not_exist_is_bad_configuration(uri: str) -> None:
    with pytest.raises(BadConfig, match=r"model\.uri .* does not exist") as e:
        Sources().model(ModelSource(uri=uri))
    assert e.value.field == "model.uri"
    with pytest.raises(BadConfig) as e:
        Sources().dataset(uri, field="stage.evaluate.datasets")
    assert e.value.field == "stage.evaluate.datasets"


def test_a_model_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(BadConfig, match="name the folder"):
        Sources().model(ModelSource(uri=f"{tmp_path}/f"))


def test_what_a_stage_left_of_a_refused_export_is_no_model(tmp_path: Path) -> None:
    """Its files are all there, and another model than the checkpoint's; who names it by hand would train on from it."""
    left = tmp_path / export_dir("short", 2, 1)
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    (tmp_path / "linked").symlink_to(left)
    for uri in (str(left), f"file://{left}/", str(tmp_path / "linked")):
        with pytest.raises(
            BadConfig, match=r"^model\.uri \S+ has no MANIFEST\.json: .* `deepcoder-trainer export`$"
        ) as e:
            Sources().model(ModelSource(uri=uri))
        assert e.value.field == "model.uri"
    assert Sources().dataset(str(left)) == left, "problems have no such places"
    elsewhere = left.rename(tmp_path / "step-000002.a001")
    assert Sources().model(ModelSource(uri=str(elsewhere))) == elsewhere, "a model of somebody's who calls it so"


@pytest.mark.s3
def test_what_a_stage_left_of_a_refused_export_in_a_bucket_is_no_model_and_is_not_fetched(
    s3: Any, tmp_path: Path
) -> None:
    prefix = f"{uuid4()}/short/export/step-000002.a001"
    open_storage(f"s3://{s3.bucket}/{prefix}", s3.endpoint).put_bytes("config.json", b"{}")
    with pytest.raises(BadConfig, match=r"has no MANIFEST\.json") as e:
        Sources(cache=tmp_path, endpoint=s3.endpoint).model(ModelSource(uri=f"s3://{s3.bucket}/{prefix}"))
    assert e.value.field == "model.uri"
    assert not list(tmp_path.rglob("config.json"))


def test_a_hub_name_needs_an_organization() -> None:
    with pytest.raises(BadConfig, match="hf://organization/name"):
        Sources().model(ModelSource(uri="hf://gpt2"))


def test_of_a_hub_repository_one_folder_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot(repo: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.append((repo, allow_patterns))
        (tmp_path / "snapshot" / "taco").mkdir(parents=True, exist_ok=True)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    sources = Sources(cache=tmp_path)
    assert sources.dataset("hf://org/sets/taco") == tmp_path / "snapshot" / "taco"
    assert sources.dataset("hf://org/sets") == tmp_path / "snapshot"
    assert asked == [("org/sets", ["taco/*"]), ("org/sets", ["*"])]
    with pytest.raises(BadConfig, match="no folder apps in org/sets"):
        sources.dataset("hf://org/sets/apps")


@pytest.mark.s3
def test_s3_sources_are_fetched_once_and_again_when_they_change(s3: Any, tmp_path: Path) -> None:
    prefix = str(uuid4())
    store = open_storage(f"s3://{s3.bucket}/{prefix}", s3.endpoint)
    store.put_bytes("model/config.json", b"{}")
    store.put_bytes("model/sub/w", b"1")
    store.put_bytes("model-other/config.json", b"{}")
    store.put_bytes("data.jsonl", b"a\n")
    local = Sources(cache=tmp_path, endpoint=s3.endpoint)
    source = ModelSource(uri=f"s3://{s3.bucket}/{prefix}/model")
    first = local.model(source)
    assert sorted(p.relative_to(first).as_posix() for p in first.rglob("*") if p.is_file()) == ["config.json", "sub/w"]
    assert local.model(source) == first
    assert local.dataset(f"s3://{s3.bucket}/{prefix}/data.jsonl").read_bytes() == b"a\n"
    store.put_bytes("model/sub/w", b"22")
    second = local.model(source)
    assert second != first
    assert (second / "sub/w").read_bytes() == b"22"


@pytest.mark.s3
def test_marks_of_folders_are_no_files_of_a_model(s3: Any, tmp_path: Path) -> None:
    """Consoles of S3 make them: objects of no bytes whose keys end in a slash."""
    prefix = str(uuid4())
    store = open_storage(f"s3://{s3.bucket}/{prefix}", s3.endpoint)
    local = Sources(cache=tmp_path, endpoint=s3.endpoint)
    source = ModelSource(uri=f"s3://{s3.bucket}/{prefix}/model")
    store.put_bytes("model/", b"")
    store.put_bytes("model/sub/", b"")
    assert [o.key for o in store.list("model")] == ["model/", "model/sub/"]
    with pytest.raises(BadConfig, match="there is nothing"):
        local.model(source)
    store.put_bytes("model/config.json", b"{}")
    store.put_bytes("model/sub/w", b"1")
    found = local.model(source)
    assert sorted(p.relative_to(found).as_posix() for p in found.rglob("*") if p.is_file()) == ["config.json", "sub/w"]


@pytest.mark.s3
def test_an_empty_place_on_s3_is_bad_configuration(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="there is nothing") as e:
        Sources(cache=tmp_path, endpoint=s3.endpoint).dataset(f"s3://{s3.bucket}/{uuid4()}/x")
    assert e.value.field == "dataset.uri"


def test_a_source_that_does_not_arrive_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    never = threading.Event()

    def hang(*_: Any) -> Path:
        never.wait()
        return tmp_path

    monkeypatch.setattr(sources, "_from_hub", hang)
    with pytest.raises(StorageUnavailable, match=r"did not arrive within 0\.05 s"):
        Sources(cache=tmp_path, deadline_s=0.05).model(ModelSource(uri="hf://a/b"))
    never.set()


@pytest.mark.parametrize(
    "keys", [["set.jsonl"], ["model/config.json", "model/model.safetensors"]], ids=["file", "folder"]
)
def test_a_connection_that_breaks_in_the_middle_of_an_object_costs_that_object_once_more(
    keys: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken: set[str] = set()

    class Breaking:
        def list(self, _prefix: str) -> list[StoredObject]:
            return [StoredObject(key, 5, datetime(2026, 1, 1, tzinfo=UTC)) for key in keys]

        def get_file(self, key: str, path: Path) -> str:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = key in broken
            path.write_text("whole" if whole else "wh")
            if not whole:
                broken.add(key)
                raise StorageUnavailable("the connection was closed")
            return "sha256"

    monkeypatch.setattr(sources, "open_storage", lambda *_: Breaking())
    monkeypatch.setattr(transfer, "_BACKOFF_SECONDS", 0.0)
    found = Sources(cache=tmp_path).dataset(f"s3://bucket/{keys[0].partition('/')[0]}")
    files = [found] if found.is_file() else sorted(found.iterdir())
    assert [file.read_text() for file in files] == ["whole"] * len(keys)


def test_an_object_whose_key_leaves_the_source_is_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Store:
        def list(self, _: str) -> list[StoredObject]:
            return [StoredObject(f"model/{name}", 1, datetime.now(UTC)) for name in ("config.json", "../../../evil")]

        def get_file(self, key: str, _: Path) -> str:
            raise AssertionError(f"{key} was asked for")

    monkeypatch.setattr(sources, "open_storage", lambda *_: Store())
    with pytest.raises(BadConfig, match=r"model\.uri .*evil.*remove that object"):
        Sources(cache=tmp_path).model(ModelSource(uri="s3://bucket/x/model"))


def test_objects_of_a_folder_come_several_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    together = threading.Barrier(transfer.PARALLEL)

    class Store:
        def list(self, _: str) -> list[StoredObject]:
            names = [f"part-{number}" for number in range(transfer.PARALLEL)]
            return [StoredObject(f"model/{name}", 1, datetime(2026, 1, 1, tzinfo=UTC)) for name in names]

        def get_file(self, _key: str, path: Path) -> str:
            path.parent.mkdir(parents=True, exist_ok=True)
            together.wait(20)  # raises where the others are not asked for meanwhile
            path.write_text("x")
            return "sha256"

    monkeypatch.setattr(sources, "open_storage", lambda *_: Store())
    found = Sources(cache=tmp_path).model(ModelSource(uri="s3://bucket/x/model"))
    assert len(list(found.iterdir())) == transfer.PARALLEL


def test_of_a_folder_nothing_is_begun_after_an_object_that_cannot_be_had() -> None:
    begun: list[int] = []

    def fetch(number: int) -> None:
        begun.append(number)
        raise StorageUnavailable(f"the line is dead for {number}")

    with pytest.raises(StorageUnavailable, match="the line is dead"):
        transfer.several(fetch, range(100))
    assert len(begun) <= transfer.PARALLEL


_GIVEN_UP = """
import sys, threading
from datetime import UTC, datetime
from pathlib import Path
from deepcoder_contracts.stage import ModelSource
from deepcoder_trainer.checkpoint import sources
from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.checkpoint.storage import StoredObject

class Store:
    def list(self, _):
        return [StoredObject(f"model/{number}", 1, datetime(2026, 1, 1, tzinfo=UTC)) for number in range(9)]

    def get_file(self, _key, _path):
        threading.Event().wait()

sources.open_storage = lambda *_: Store()
try:
    sources.Sources(cache=Path(sys.argv[1]), deadline_s=0.2).model(ModelSource(uri="s3://bucket/x/model"))
except StorageUnavailable as error:
    print(error)
"""


def test_a_folder_that_nobody_waits_for_any_more_keeps_no_process_from_ending(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _GIVEN_UP, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "s3://bucket/x/model did not arrive within 0.2 s\n"


def test_a_process_that_waits_for_the_download_of_another_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def wait() -> None:
        with locked(tmp_path):
            pass

    waiting = threading.Thread(target=wait)
    with caplog.at_level(logging.INFO), locked(tmp_path):
        waiting.start()
        until = time.monotonic() + 30
        while not caplog.messages and time.monotonic() < until:
            time.sleep(0.02)
    waiting.join(30)
    assert not waiting.is_alive()
    assert caplog.messages == [f"waiting until another process has fetched what it needs into {tmp_path}"]
