"""Which results count for an Evaluate stage, against a real S3 server: verified, of this run, of the last attempt."""

from __future__ import annotations

from typing import Any

import pytest
import s3_server
from plan_world import UID
from run_folder import Folder

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.manifest import ManifestKind, RunIdentity
from deepcoder_operator.domain.world import StoredStage
from deepcoder_operator.storage.findings import Findings
from deepcoder_operator.storage.reader import read_stage

pytestmark = pytest.mark.s3

SCORE = "eval/x/pass_at_1"


@pytest.fixture
def folder(s3: s3_server.S3Server) -> Folder:
    return Folder(s3)


def read(folder: Folder) -> StoredStage:
    return read_stage(folder.run, "short", evaluate=True, ordinal=None, known=frozenset(), findings=Findings())


def evaluate(folder: Folder, key: str, ordinal: int, /, **changes: Any) -> None:
    """An attempt commits results under a key."""
    fields = {"kind": ManifestKind.EVALUATION, "evaluation_key": key * 64, "step": 20, "ordinal": ordinal}
    folder.commit(f"eval/{key * 64}", fields | changes)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"run": RunIdentity(namespace="ml", name="demo", uid=UID.replace("0", "9"))}, "of another run"),
        ({"config_digest": sha256_digest(b"other")}, "with another config"),
        ({"kind": ManifestKind.CHECKPOINT}, "says that it is"),
    ],
)
def test_manifest_of_something_else_is_no_result(folder: Folder, change: dict[str, Any], why: str) -> None:
    evaluate(folder, "a", 1, **change)
    found = read(folder)
    assert not found.evaluated
    assert [why in told for told in found.rejected] == [True]


def test_evaluation_of_another_stage_is_neither_a_result_nor_in_the_way(folder: Folder) -> None:
    evaluate(folder, "a", 1, stage="long", metrics={SCORE: 0.9})
    assert read(folder) == StoredStage(metrics={})
    evaluate(folder, "b", 2, metrics={SCORE: 0.5})
    assert read(folder).metrics == {SCORE: 0.5}


def test_evaluation_that_was_not_committed_or_is_damaged_is_no_result(folder: Folder) -> None:
    folder.put(f"eval/{'a' * 64}/results.json", b"{}")
    assert read(folder) == StoredStage(metrics={})
    evaluate(folder, "b", 1)
    assert read(folder).evaluated
    folder.put(f"eval/{'b' * 64}/w.bin", b"weights 2x")
    found = read(folder)
    assert not found.evaluated
    assert ["w.bin has checksum" in told for told in found.rejected] == [True]


@pytest.mark.parametrize("keys", ["ab", "ba"])
def test_results_and_code_are_those_of_the_attempt_that_evaluated_last(folder: Folder, keys: str) -> None:
    """An attempt may end after it has committed; the next one measures again if its image is another."""
    code = sha256_digest(b"another release")
    evaluate(folder, keys[0], 1, metrics={SCORE: 0.9}, versions={"torch": "2.8.0"})
    evaluate(folder, keys[1], 2, metrics={SCORE: 0.5}, versions={"torch": "2.9.0"}, code_digest=code)
    found = read(folder)
    assert found.metrics == {SCORE: 0.5}
    assert (found.code_digest, found.versions) == (code, {"torch": "2.9.0"})
