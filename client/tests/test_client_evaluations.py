"""A run's evaluations as the client reads them: from where the manifest says, and nothing that was changed since."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from deepcoder_client.errors import StorageError
from deepcoder_client.run_folder import RunFolder
from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.chain import Missing
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind, RunIdentity

KEY = "a" * 64
FOLDER = f"runs/ns/r/eval/{KEY}"
RESULTS = {"targets": {"Base": {"lcb": {"problems": 4}}}}


class Bucket:
    """Objects by their keys."""

    name = "b"

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    def folders(self, prefix: str) -> list[str]:
        return sorted({key.removeprefix(prefix).split("/")[0] for key in self.objects if key.startswith(prefix)})

    def get(self, key: str, **_: Any) -> tuple[bytes, None]:
        try:
            return self.objects[key], None
        except KeyError:
            raise Missing(key) from None


class Run:
    """A run without stages."""

    class spec:
        """Its spec."""

        stages = ()


def folder_with(path: str, stored: bytes, *, listed: bool = True) -> RunFolder:
    """A folder with one evaluation, whose results.json is at `path` and should be RESULTS."""
    data = json.dumps(RESULTS).encode()
    entry = FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    manifest = Manifest(
        kind=ManifestKind.EVALUATION,
        run=RunIdentity(namespace="ns", name="r", uid="00000000-0000-0000-0000-000000000001"),
        stage="exam",
        stage_index=0,
        ordinal=1,
        step=0,
        total_steps=0,
        config_digest=sha256_digest(b""),
        code_digest=sha256_digest(b""),
        seed=0,
        world_size=0,
        evaluation_key=KEY,
        created_at=datetime.now(UTC),
        files=[entry] if listed else [],
    )
    objects = {f"{FOLDER}/MANIFEST.json": manifest.to_json(), f"{FOLDER}/{path}": stored}
    return RunFolder(Bucket(objects), "runs/ns/r", Run())  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["results.json", "0123456789ab/results.json"])
def test_results_are_read_from_where_the_manifest_says(path: str) -> None:
    [evaluation] = folder_with(path, json.dumps(RESULTS).encode()).evaluations()
    assert evaluation.results == RESULTS


def test_results_that_were_changed_since_are_not_shown() -> None:
    changed = json.dumps({"targets": {"Base": {"lcb": {"problems": 400}}}}).encode()
    with pytest.raises(StorageError, match=r"is not what MANIFEST\.json beside it says"):
        folder_with("results.json", changed).evaluations()


def test_an_evaluation_that_cannot_be_read_hides_no_other() -> None:
    whole, changed = folder_with("results.json", json.dumps(RESULTS).encode()), folder_with("results.json", b"{}")
    lost = folder_with("results.json", b"")
    objects: dict[str, bytes] = {}
    for letter, folder in zip("abc", (whole, changed, lost), strict=True):
        stored: Any = folder.bucket.objects
        objects |= {key.replace(KEY, letter * 64): data for key, data in stored.items()}
    del objects[f"runs/ns/r/eval/{'c' * 64}/results.json"]
    damaged: list[str] = []
    found = RunFolder(Bucket(objects), "runs/ns/r", Run()).evaluations(damaged)  # type: ignore[arg-type]
    assert [evaluation.results for evaluation in found] == [RESULTS]
    assert ["was changed" in damaged[0], "is missing" in damaged[1]] == [True, True]


def test_results_that_the_manifest_does_not_list_are_not_shown() -> None:
    with pytest.raises(StorageError, match=r"lists no results\.json"):
        folder_with("results.json", json.dumps(RESULTS).encode(), listed=False).evaluations()
