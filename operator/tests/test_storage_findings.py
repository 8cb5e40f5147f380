"""A query that is cut off at its deadline is not in vain: the next one goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from run_folder import CONFIG, RUN

from deepcoder_contracts.api.run_spec import FromCheckpoint
from deepcoder_contracts.chain import Missing
from deepcoder_contracts.layout import checkpoint_dir
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind
from deepcoder_operator.domain.world import StoredStage
from deepcoder_operator.storage.findings import Findings, Kept
from deepcoder_operator.storage.reader import RunFolder, read_stage, resolve_origin
from deepcoder_operator.storage.s3 import StorageProblem, Stored, Unheard

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
FILES = 7


class SlowBucket:
    """Answers three requests for files or manifests below eval/ of a query before its deadline."""

    name = "bucket"

    def __init__(self, server: str = "one") -> None:
        self.place = (server, None, self.name)
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.left = 0

    def put(self, folder: str, **fields: Any) -> None:
        files = [FileEntry(path=f"w-{n}", size=n, sha256="0" * 64) for n in range(FILES)]
        of_all: dict[str, Any] = {
            "kind": ManifestKind.CHECKPOINT, "run": RUN, "stage": "short", "stage_index": 0, "ordinal": 1, "step": 10,
            "config_digest": CONFIG, "code_digest": CONFIG, "seed": 0, "world_size": 1, "created_at": NOON,
            "files": files,
        }  # fmt: skip
        manifest = Manifest(**(of_all | fields))
        self.stored[f"{folder}/MANIFEST.json"] = manifest.to_json()
        self.stored |= {f"{folder}/{file.path}": b"x" * file.size for file in manifest.files}

    def _ask(self, key: str) -> bytes:
        if not self.left:
            raise Unheard
        self.left -= 1
        self.asked.append(key)
        if key not in self.stored:
            raise Missing
        return self.stored[key]

    def get(self, key: str) -> tuple[bytes, datetime]:
        return self._ask(key) if "/eval/" in key else self.stored[key], NOON

    def head(self, key: str) -> Stored:
        return Stored(key, len(self._ask(key)), NOON)

    def folders(self, prefix: str) -> list[str]:
        below = (key.removeprefix(prefix) for key in self.stored if key.startswith(prefix))
        return sorted({key.split("/")[0] for key in below if "/" in key})


def read(bucket: SlowBucket, findings: Findings, *, evaluate: bool = False) -> StoredStage:
    of: Any = bucket
    run = RunFolder(of, "r", RUN, CONFIG)
    return read_stage(run, "short", evaluate=evaluate, ordinal=None, known=frozenset(), findings=findings)


def origin(bucket: SlowBucket, findings: Findings) -> Any:
    of: Any = bucket
    return resolve_origin(of, FromCheckpoint(uri=f"s3://bucket/{PLACE}"), findings)


PLACE = f"r/{checkpoint_dir('short', 10, 1)}"
ASKS: list[Callable[[SlowBucket, Findings], Any]] = [read, origin]


def until_done(bucket: SlowBucket, ask: Callable[[], Any]) -> Any:
    """Ask again and again, as a run does."""
    for _ in range(9):
        bucket.left = 3
        try:
            return ask()
        except Unheard:
            pass
    raise AssertionError("no query comes to an end")


@pytest.fixture
def bucket() -> SlowBucket:
    made = SlowBucket()
    made.put(PLACE)
    return made


FILE_KEYS = [f"{PLACE}/w-{n}" for n in range(FILES)]


@pytest.mark.parametrize("ask", ASKS)
def test_checkpoint_of_more_files_than_a_query_verifies_is_verified_by_several(
    ask: Callable[[SlowBucket, Findings], Any], bucket: SlowBucket
) -> None:
    findings = Findings()
    assert until_done(bucket, lambda: ask(bucket, findings))
    assert bucket.asked == FILE_KEYS


@pytest.mark.parametrize("ask", ASKS)
def test_file_that_differs_is_found_behind_those_of_earlier_queries_and_all_are_verified_anew(
    ask: Callable[[SlowBucket, Findings], Any], bucket: SlowBucket
) -> None:
    now = [0.0]
    findings = Findings(lambda: now[0])
    bucket.stored[FILE_KEYS[5]] = b"four"
    try:
        found = str(until_done(bucket, lambda: ask(bucket, findings)).rejected)
    except StorageProblem as problem:
        found = str(problem)
    assert "w-5 has 4 bytes, not 5" in found
    bucket.stored[FILE_KEYS[5]] = b"12345"
    bucket.asked.clear()
    now[0] = 300.0
    until_done(bucket, lambda: ask(bucket, findings))
    assert bucket.asked == FILE_KEYS


def test_another_manifest_another_server_and_one_much_later_are_verified_from_the_first_file(
    bucket: SlowBucket,
) -> None:
    now = [0.0]
    findings = Findings(lambda: now[0])

    def first(of: SlowBucket) -> str:
        of.left = 3
        of.asked.clear()
        with pytest.raises(Unheard):
            read(of, findings)
        return of.asked[0]

    assert first(bucket) == FILE_KEYS[0]
    other = SlowBucket("another")
    other.put(PLACE)
    assert first(other) == FILE_KEYS[0]
    bucket.put(PLACE, seed=1)
    assert first(bucket) == FILE_KEYS[0]
    assert first(bucket) == FILE_KEYS[3]
    now[0] = 600.0
    assert first(bucket) == FILE_KEYS[0]


def test_damage_on_one_server_is_not_told_of_another_with_a_bucket_of_the_same_name(bucket: SlowBucket) -> None:
    findings = Findings()
    other = SlowBucket("another")
    other.put(PLACE)
    other.stored[FILE_KEYS[0]] = b"x"
    assert until_done(other, lambda: read(other, findings)).rejected
    assert until_done(bucket, lambda: read(bucket, findings)).newest


def evaluation(bucket: SlowBucket, key: str, **fields: Any) -> str:
    folder = f"r/eval/{key * 64}"
    bucket.put(folder, kind=ManifestKind.EVALUATION, evaluation_key=key * 64, **fields)
    return f"{folder}/MANIFEST.json"


def test_evaluations_of_other_stages_are_read_once_however_many_there_are() -> None:
    bucket, findings = SlowBucket(), Findings()
    others = [evaluation(bucket, key, stage="long") for key in "0123456789"]
    mine = evaluation(bucket, "a", files=[], metrics={"score": 0.5})
    assert until_done(bucket, lambda: read(bucket, findings, evaluate=True)).metrics == {"score": 0.5}
    assert bucket.asked == [*others, mine]
    evaluation(bucket, "a", files=[], metrics={"score": 0.25})
    assert until_done(bucket, lambda: read(bucket, findings, evaluate=True)).metrics == {"score": 0.25}
    assert bucket.asked == [*others, mine, mine], "the stage's own are read by each query"


def test_oldest_is_forgotten_if_there_are_too_many() -> None:
    kept: Kept[str] = Kept(lambda: 0.0, 1.0, 2)
    for key in "aba":
        kept.put(key, key)
    kept.put("c", "c")
    assert [kept.get(key) for key in "abc"] == ["a", None, "c"]
