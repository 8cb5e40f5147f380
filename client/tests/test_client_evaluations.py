"""A run's folder as the client reads it: evaluations from where their manifest says, attempts and steps in order."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from deepcoder_client.errors import NoData, StorageError
from deepcoder_client.run_folder import RunFolder
from deepcoder_client.storage import Stored
from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.chain import Damaged, Missing
from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind, RunIdentity

KEY = "a" * 64
FOLDER = f"runs/ns/r/eval/{KEY}"
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
RESULTS = {"targets": {"Base": {"lcb": {"problems": 4}}}}


class Bucket:
    """Objects by their keys."""

    name = "b"

    def __init__(self, stored: dict[str, bytes]) -> None:
        self.stored = stored

    def folders(self, prefix: str) -> list[str]:
        return sorted({key.removeprefix(prefix).split("/")[0] for key in self.stored if key.startswith(prefix)})

    def objects(self, prefix: str) -> list[Stored]:
        """Each was stored an hour after the one before."""
        hours = {key: NOON + timedelta(hours=hour) for hour, key in enumerate(self.stored)}
        return [Stored(key, 1, hours[key]) for key in self.stored if key.startswith(prefix)]

    def get(self, key: str, **_: Any) -> tuple[bytes, None]:
        try:
            return self.stored[key], None
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
        stored: Any = folder.bucket.stored
        objects |= {key.replace(KEY, letter * 64): data for key, data in stored.items()}
    del objects[f"runs/ns/r/eval/{'c' * 64}/results.json"]
    damaged: list[str] = []
    found = RunFolder(Bucket(objects), "runs/ns/r", Run()).evaluations(damaged)  # type: ignore[arg-type]
    assert [evaluation.results for evaluation in found] == [RESULTS]
    assert ["was changed" in damaged[0], "is missing" in damaged[1]] == [True, True]


def test_results_that_the_manifest_does_not_list_are_not_shown() -> None:
    with pytest.raises(StorageError, match=r"lists no results\.json"):
        folder_with("results.json", json.dumps(RESULTS).encode(), listed=False).evaluations()


def folder_of(*keys: str, latest: Any = None) -> RunFolder:
    """A folder of a run with two stages, which has these objects, stored in this order."""
    bucket: Any = Bucket({f"runs/ns/r/{key}": EXITED if key.endswith("exit.json") else b"" for key in keys})
    run: Any = SimpleNamespace(
        metadata=SimpleNamespace(namespace="ns", name="r"),
        spec=SimpleNamespace(stages=[SimpleNamespace(name=name) for name in ("tall", "short")]),
        status=SimpleNamespace(latest_checkpoint=latest),
    )
    return RunFolder(bucket, "runs/ns/r", run)


EXITED = ExitRecord(code=1, reason="Crashed", message="why").model_dump_json(by_alias=True).encode()


def test_attempts_are_told_by_number_with_when_they_began_ended_and_last_stored_something() -> None:
    """Of stages that were gone back to, a later one may have an earlier attempt."""
    first, second = folder_of(
        "tall/attempts/002/claim.json", "short/attempts/001/claim.json", "short/attempts/001/exit.json",
        "tall/attempts/002/metrics.jsonl", "short/attempts/001/logs/driver.log",
    ).attempts()  # fmt: skip
    assert [(a.stage, a.ordinal, a.logs) for a in (first, second)] == [("short", 1, ("driver.log",)), ("tall", 2, ())]
    hours = [[time and (time - NOON).seconds // 3600 for time in (a.claimed, a.ended, a.seen)] for a in (first, second)]
    assert hours == [[1, 2, 4], [0, None, 3]]
    assert (first.exit and first.exit.reason, second.exit) == ("Crashed", None)


def test_samples_are_told_by_stage_and_step_and_the_newest_are_read_where_none_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = folder_of(
        *(
            f"{stage}/samples/step-{step:06}.parquet"
            for stage, step in (("short", 7), ("tall", 1_000_000), ("tall", 20))
        )
    )
    assert folder.sample_steps() == [("tall", 20), ("tall", 1_000_000), ("short", 7)]
    assert folder.sample_steps("tall") == [("tall", 20), ("tall", 1_000_000)]
    read: list[tuple[str, int]] = []

    def noted(stage: str, step: int) -> bytes:
        read.append((stage, step))
        raise NoData("enough")

    monkeypatch.setattr(folder, "read_samples", noted)
    for asked in ((None, None), ("tall", None), (None, 20)):
        with pytest.raises(NoData, match="enough"):
            folder.sample_table(*asked)
    assert read == [("short", 7), ("tall", 1_000_000), ("tall", 20)]
    with pytest.raises(NoData, match="has no samples at step 21"):
        folder.sample_table(None, 21)


def test_evaluations_are_told_from_the_oldest_on() -> None:
    objects: dict[str, bytes] = {}
    for letter, year in (("a", 2027), ("b", 2026)):
        stored: Any = folder_with("results.json", json.dumps(RESULTS).encode()).bucket
        for key, data in stored.stored.items():
            dated = data
            if key.endswith("MANIFEST.json"):
                manifest = Manifest.from_json(data)
                dated = manifest.model_copy(update={"created_at": datetime(year, 1, 1, tzinfo=UTC)}).to_json()
            objects[key.replace(KEY, letter * 64)] = dated
    found = RunFolder(Bucket(objects), "runs/ns/r", Run()).evaluations()  # type: ignore[arg-type]
    assert [evaluation.manifest.created_at.year for evaluation in found] == [2026, 2027]


def test_the_newest_checkpoint_is_held_against_the_digest_of_the_status() -> None:
    latest = SimpleNamespace(uri="s3://b/runs/ns/r/tall/step-000020.a002", digest=sha256_digest(b"another"))
    folder = folder_of("tall/step-000020.a002/MANIFEST.json", latest=latest)
    with pytest.raises(Damaged, match=f"not {latest.digest} as requested"):
        list(folder.lineage())


@pytest.mark.parametrize("uri", ["s3://other/runs/ns/r/tall/step-000020.a002", "s3://b", "/b/runs"])
def test_a_chain_begins_in_the_runs_own_bucket(uri: str) -> None:
    with pytest.raises(StorageError, match="is not in the run's bucket: give s3://b/"):
        folder_of().lineage(uri)
