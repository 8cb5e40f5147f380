"""Which manifests can come from which: one attempt makes all of its own by one code, in one image, on the same GPUs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.lineage import StoredCheckpoint, broken_link, candidates, cut_short, newest_checkpoint
from deepcoder_contracts.manifest import BY_HAND, Manifest, ManifestKind, ParentRef, RunIdentity

RUN = RunIdentity(namespace="ml", name="demo", uid="01234567-89ab-4cde-8f01-23456789abcd")
MADE_BY: dict[str, tuple[Any, Any]] = {
    "code_digest": (sha256_digest(b"code"), sha256_digest(b"other")),
    "versions": ({"torch": "2.9.0"}, {"torch": "2.9.1"}),
    "image": ("trainer:1", "trainer:2"),
    "image_id": ("trainer@sha256:1", "trainer@sha256:2"),
    "accelerator": ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"),
}


def manifest(step: int, ordinal: int = 1, **fields: Any) -> Manifest:
    made = {name: value for name, (value, _) in MADE_BY.items()} | {"stage": "short", "stage_index": 0} | fields
    return Manifest(
        kind=ManifestKind.CHECKPOINT, run=RUN, ordinal=ordinal, step=step,
        config_digest=sha256_digest(b"config"), seed=0, world_size=1, created_at=datetime.now(UTC), **made,
    )  # fmt: skip


def test_the_highest_step_counts_then_the_highest_attempt_and_nothing_from_after_a_later_claim() -> None:
    def at(second: int) -> datetime:
        return datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)

    claims = {1: at(0), 2: at(10)}
    stored = [
        StoredCheckpoint(step, ordinal, at(second), f"step {step} of {ordinal}")
        for step, ordinal, second in ((20, 1, 8), (30, 1, 9), (10, 1, 10), (40, 1, 11), (20, 2, 12), (10, 2, 13))
    ]
    counting = ["step 30 of 1", "step 20 of 2", "step 20 of 1", "step 10 of 2", "step 10 of 1"]
    assert [c.path for c in candidates(stored, claims)] == counting
    assert newest_checkpoint(stored, claims) == stored[1]
    assert newest_checkpoint([], claims) is None


@pytest.mark.parametrize("field", MADE_BY)
def test_one_attempt_cannot_have_been_made_by_two(field: str) -> None:
    _, other = MADE_BY[field]
    problem = broken_link(manifest(20, **{field: other}), manifest(10))
    assert problem is not None
    assert field.replace("_", " ") in problem
    assert broken_link(manifest(20, 2, **{field: other}), manifest(10)) is None, "the next attempt may be upgraded"


def test_a_run_trains_on_one_set_of_problems() -> None:
    before, other = sha256_digest(b"problems"), sha256_digest(b"others")
    problem = broken_link(manifest(20, 2, dataset_digest=other), manifest(10, dataset_digest=before))
    assert problem == f"has dataset digest {other}, its parent of the same run {before}"
    assert broken_link(manifest(20, dataset_digest=before), manifest(10)) is None, "not known then"


def test_attempts_are_numbered_over_the_run_in_a_cluster_and_stage_by_stage_by_hand() -> None:
    after = {"stage": "long", "stage_index": 1}
    first, second = manifest(20, 3), manifest(1, 1, **after)
    assert broken_link(second, first) == "is of attempt 1, its parent of the later attempt 3"
    by_hand = RUN.model_copy(update={"namespace": BY_HAND})
    first, second = (each.model_copy(update={"run": by_hand}) for each in (first, second))
    assert broken_link(second, first) is None
    again = broken_link(second.model_copy(update={"step": 2}), second.model_copy(update={"ordinal": 2}))
    assert again == "is of attempt 1, its parent of the later attempt 2"


def test_no_stage_comes_from_a_later_one_nor_from_its_own_number_under_another_name() -> None:
    later = manifest(10, 1, stage="long", stage_index=1)
    assert broken_link(manifest(20, 2), later) == "is of stage short, its parent of the later stage long"
    renamed = manifest(20, 2, stage="other", stage_index=1)
    assert broken_link(renamed, later) == "calls stage 1 other, its parent 1 long"


def test_one_image_may_be_written_in_two_ways() -> None:
    child, parent = (f"{name}@sha256:{'1' * 64}" for name in ("docker.io/team/trainer", "docker-pullable://trainer"))
    assert broken_link(manifest(20, image_id=child), manifest(10, image_id=parent)) is None


@pytest.mark.parametrize("field", [name for name in MADE_BY if name != "code_digest"])
def test_what_was_not_known_yet_contradicts_nothing(field: str) -> None:
    unknown: Any = {} if field == "versions" else None
    assert broken_link(manifest(20), manifest(10, **{field: unknown})) is None
    assert broken_link(manifest(20, **{field: unknown}), manifest(10)) is None


def test_a_chain_begins_with_a_checkpoint_of_the_first_stage_that_trained() -> None:
    assert cut_short(manifest(10)) is None, "of a manifest from before steps were counted over all stages"
    assert cut_short(manifest(10, total_steps=10)) is None
    later = cut_short(manifest(10, total_steps=190))
    assert later == ("has seen 190 steps, 10 of them in its stage, and names no parent: its chain is cut")
    parent = ParentRef(uri="s3://b/ml/demo/short/step-000180.a001", digest=sha256_digest(b"parent"))
    assert cut_short(manifest(10, total_steps=190, parent=parent)) is None
    export = manifest(10, total_steps=10).model_copy(update={"kind": ManifestKind.EXPORT})
    assert "does not name the checkpoint that it was made from" in (cut_short(export) or "")
    evaluation = export.model_copy(update={"kind": ManifestKind.EVALUATION})
    assert cut_short(evaluation) is None, "of the model that the run began with"
