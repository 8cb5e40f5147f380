"""Chains that take longer to check than one question may: each walk gets further, and says what is not checked yet."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from web_fakes import run_of

from deepcoder_client.run_folder import RunFolder
from deepcoder_client.storage import Stored
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.chain import Missing
from deepcoder_contracts.layout import checkpoint_dir
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind, ParentRef, RunIdentity, RunRecord
from deepcoder_web.chains import KEPT_SECONDS, LOOK_SECONDS, Chains

IDENTITY = RunIdentity(namespace="team", name="demo", uid="01234567-89ab-4cde-8f01-23456789abcd")
CONFIG, NOON = sha256_digest(b"config"), datetime(2026, 1, 1, 12, tzinfo=UTC)
FILES = 3
KEY = "team/demo"


class World:
    """A bucket with a chain, each of whose answers about a file takes a third of a walk; and the clock."""

    def __init__(self, links: int) -> None:
        self.name, self.now, self.asked = "bucket", 1_000_000.0, list[str]()
        self.files = dict[str, int]()
        self.documents = {f"{KEY}/RUN.json": RunRecord(run=IDENTITY, config_digest=CONFIG, created_at=NOON).to_json()}
        entries = [FileEntry(path=f"part-{n}.safetensors", size=n, sha256="0" * 64) for n in range(FILES)]
        parent = None
        for step in range(1, links + 1):
            folder = f"{KEY}/{checkpoint_dir('short', step, 1)}"
            self.documents[f"{folder}/MANIFEST.json"] = Manifest(
                kind=ManifestKind.CHECKPOINT, run=IDENTITY, stage="short", stage_index=0, ordinal=1, step=step,
                total_steps=step, parent=parent, config_digest=CONFIG, code_digest=sha256_digest(b"code"), seed=0,
                world_size=1, created_at=NOON, files=entries,
            ).to_json()  # fmt: skip
            self.files |= {f"{folder}/{entry.path}": entry.size for entry in entries}
            digest = sha256_digest(self.documents[f"{folder}/MANIFEST.json"])
            parent = ParentRef(uri=f"s3://bucket/{folder}", digest=digest)
        self.latest: Any = parent
        self.chains = Chains(lambda: self.now)

    def get(self, key: str) -> tuple[bytes, datetime]:
        if key not in self.documents:
            raise Missing
        return self.documents[key], NOON

    def head(self, key: str) -> Stored:
        self.asked.append(key)
        self.now += LOOK_SECONDS / 3 + 0.1
        if key not in self.files:
            raise Missing
        return Stored(key, self.files[key], NOON)

    def objects(self, prefix: str) -> Sequence[Stored]:
        return [Stored(key, 0, NOON) for key in self.files if key.startswith(prefix)]

    def file_of(self, step: int) -> str:
        """A file of a link."""
        return f"{KEY}/{checkpoint_dir('short', step, 1)}/part-1.safetensors"

    def walk(self, uid: str = "uid-demo") -> dict[str, Any]:
        run = run_of().model_dump(mode="json", by_alias=True)
        run["metadata"]["uid"] = uid
        run["status"]["latestCheckpoint"] = {
            "uri": self.latest.uri, "digest": self.latest.digest, "stage": "short", "step": 1, "ordinal": 1,
            "committedTime": "2026-01-01T12:00:00Z",
        }  # fmt: skip
        bucket: Any = self
        return self.chains.walk(RunFolder(bucket, KEY, DeepCoderRun.model_validate(run)))


def test_each_walk_goes_on_where_the_last_one_ended_until_all_is_checked() -> None:
    world = World(4)
    found = world.walk()
    lengths = [len(found["nodes"])]
    while found["unfinished"]:
        assert found["problem"] is None
        found = world.walk()
        lengths.append(len(found["nodes"]))
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1], len(lengths)) == (1, 4, 4)
    assert [node["step"] for node in found["nodes"]] == [4, 3, 2, 1]
    assert len(world.asked) == len(set(world.asked)) == 4 * FILES, "no file is asked for twice"
    assert found["checked"] == "1970-01-12T13:46:40Z", "when the first file was"
    world.asked.clear()
    assert world.walk() == found
    assert world.asked == []


def test_a_link_in_which_one_walk_does_not_come_to_the_end_is_finished_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deepcoder_web.chains.LOOK_SECONDS", LOOK_SECONDS / 4)
    world = World(1)
    assert [(len(found["nodes"]), found["unfinished"]) for found in (world.walk(), world.walk(), world.walk())] == [
        (0, True), (0, True), (1, False)
    ]  # fmt: skip


def test_what_is_damaged_is_told_each_time_and_what_was_whole_is_looked_at_again_after_a_while() -> None:
    world = World(2)
    del world.files[world.file_of(1)]
    while (found := world.walk())["unfinished"]:
        pass
    assert "part-1.safetensors is missing" in found["problem"]
    assert [node["step"] for node in found["nodes"]] == [2]
    world.files[world.file_of(1)] = 1
    while (found := world.walk())["unfinished"]:
        pass
    assert (found["problem"], len(found["nodes"])) == (None, 2)
    del world.files[world.file_of(1)]
    assert world.walk()["problem"] is None
    world.now += KEPT_SECONDS
    while (found := world.walk())["unfinished"]:
        pass
    assert "part-1.safetensors is missing" in found["problem"]


def test_what_one_run_found_says_nothing_of_another() -> None:
    world = World(1)
    while world.walk()["unfinished"]:
        pass
    world.asked.clear()
    while world.walk("uid-another")["unfinished"]:
        pass
    assert len(world.asked) == FILES
