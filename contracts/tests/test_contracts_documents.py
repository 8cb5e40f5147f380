"""Documents that are stored or sent: strict reading, versions, canonical bytes, storage keys."""

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deepcoder_contracts import layout
from deepcoder_contracts.base import VersionedContract, sha256_digest
from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.judge import JudgeRequest, JudgeResponse
from deepcoder_contracts.lineage import StoredCheckpoint, candidates, newest_checkpoint
from deepcoder_contracts.manifest import Claim, FileEntry, RunIdentity
from deepcoder_contracts.progress import Desired, ProgressReply, ProgressReport
from deepcoder_contracts.recipe import OldLogprobs, Recipe
from deepcoder_contracts.stage import StageConfig

UID = "0f0e0d0c-0000-4000-8000-000000000001"
RUN = RunIdentity(namespace="team", name="run", uid=UID)
T0 = datetime(2026, 1, 1, tzinfo=UTC)
PROGRESS = {"ordinal": 1, "stage": "16k", "phase": "Training", "step": 3, "maxSteps": 9, "sentAt": T0}


def stage_config(**changes: object) -> dict[str, object]:
    return {
        "run": {"namespace": "team", "name": "run", "uid": UID},
        "stage": {"name": "16k", "index": 0, "type": "Train", "contextTokens": 16384, "maxSteps": 180},
        "longestContextTokens": 16384,
        "ordinal": 1,
        "model": {"uri": "hf://org/model"},
        "dataset": {"uri": "s3://bucket/train.jsonl"},
        "recipe": {},
        "storage": {"uri": "s3://bucket/prefix"},
        "provenance": {"configDigest": "sha256:" + "0" * 64},
        **changes,
    }


def test_an_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="clipLo"):
        Recipe.model_validate({"clipLo": 0.1})


def test_a_document_of_a_newer_layout_is_refused_with_the_mend() -> None:
    with pytest.raises(ValidationError, match="use the release that wrote it"):
        ExitRecord.model_validate({"schemaVersion": 2, "code": 0, "reason": "Completed"})


class Later(VersionedContract):
    """A document whose layout has changed once."""

    CURRENT_VERSION = 2


def test_a_document_is_of_the_current_version_unless_it_says_otherwise() -> None:
    assert Later().schema_version == 2
    assert Later.from_json(b"{}").schema_version == 2
    assert Later.from_json(b'{"schemaVersion":1}').to_json() == b'{"schemaVersion":1}'
    assert b'"schemaVersion":1' in ExitRecord(code=0, reason="Completed").to_json()


def test_a_reply_with_fields_of_a_later_release_is_still_obeyed() -> None:
    reply = ProgressReply.from_json(b'{"schemaVersion":1,"desired":"Drain","deadlineSeconds":60,"why":"eviction"}')
    assert (reply.desired, reply.deadline_seconds) == (Desired.DRAIN, 60)


def test_canonical_bytes_survive_a_round_trip() -> None:
    claim = Claim(run=RUN, stage="16k", ordinal=3, claimed_at=T0)
    assert Claim.from_json(claim.to_json()) == claim
    assert Claim.from_json(claim.to_json()).to_json() == claim.to_json()


def strictly(data: bytes) -> Any:
    """As a reader that knows no NaN and no infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(data, parse_constant=refuse)


def test_what_is_written_is_json_whatever_a_step_came_to() -> None:
    figures = {"loss": math.nan, "grad_norm": math.inf, "kl": -math.inf, "reward_mean": 0.5}
    report = ProgressReport.model_validate(PROGRESS | {"metrics": figures, "phaseSeconds": {"train": math.nan}})
    assert strictly(report.to_json())["metrics"] == {"reward_mean": 0.5}
    assert strictly(report.to_json())["phaseSeconds"] == {}
    gate = GateRecord(met=False, values=figures, window={})
    assert strictly(gate.to_json())["values"] == {"reward_mean": 0.5}
    assert ProgressReport.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("count", "seconds", "name"),
    [(int("7" * 400), 60.0, "count"), (2**53 + 1, 60.0, "count"), (64, 1e300, "within")],
    ids=["beyond a float", "beyond other readers", "for ever"],
)
def test_a_load_beyond_all_reason_is_no_announcement(count: int, seconds: float, name: str) -> None:
    announced = {"count": count, "withinSeconds": seconds}
    with pytest.raises(ValidationError, match=f"expectedSubmissions.{name}"):
        ProgressReport.model_validate(PROGRESS | {"expectedSubmissions": announced})


def test_an_announcement_may_be_of_a_step_that_takes_weeks() -> None:
    """A step that ends with a long evaluation is still a step. A trainer whose announcement is refused is not heard."""
    announced = {"count": 65536 * 1024, "withinSeconds": 30 * 86400.0}
    ProgressReport.model_validate(PROGRESS | {"expectedSubmissions": announced})


def test_what_a_later_change_of_a_document_brings_in_is_never_written_as_no_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        ProgressReport.model_validate(PROGRESS).model_copy(update={"metrics": {"loss": math.nan}}).to_json()


@pytest.mark.parametrize("name", ["tisCap", "gradClip", "clipHigh", "entropyCoefficient", "klCoefficient"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_setting_is_a_finite_number(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        Recipe.model_validate({name: value})


def test_digest_is_of_the_bytes() -> None:
    assert sha256_digest(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_defaults_are_the_published_recipe() -> None:
    recipe = Recipe()
    assert (recipe.prompts_per_step, recipe.group_size, recipe.optimizer_steps) == (128, 8, 2)
    assert (recipe.clip_low, recipe.clip_high, recipe.learning_rate, recipe.temperature) == (0.2, 0.28, 1e-6, 0.6)
    assert recipe.kl_coefficient == recipe.entropy_coefficient == 0


@pytest.mark.parametrize(("staleness", "expected"), [(0, OldLogprobs.RECOMPUTE), (1, OldLogprobs.BEHAVIOUR)])
def test_old_logprobs_default_follows_staleness(staleness: int, expected: OldLogprobs) -> None:
    assert Recipe(max_off_policy=staleness).resolved_old_logprobs is expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "Window", "maxOffPolicy": 0}, "set maxOffPolicy: 1, or order: Strict"),
        ({"order": "Window", "deterministic": True}, "deterministic needs order: Strict"),
        ({"refill": True, "deterministic": True}, "set refill: false"),
        ({"promptsPerStep": 33}, "make promptsPerStep a multiple"),
    ],
)
def test_settings_that_do_not_fit_together_say_how_to_mend(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(settings)


def test_a_stage_config_reads_as_written() -> None:
    config = StageConfig.model_validate(stage_config())
    assert StageConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": None}, "set dataset.uri"),
        ({"storage": {"uri": "gs://bucket"}}, "storage.uri"),
        (
            {"stage": {"name": "e", "index": 1, "type": "Evaluate", "contextTokens": 8}},
            "an Evaluate stage needs evaluate.datasets",
        ),
        (
            {"stage": {"name": "t", "index": 0, "type": "Train", "contextTokens": 8}},
            "a Train stage needs maxSteps",
        ),
    ],
)
def test_a_bad_stage_config_names_the_field(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StageConfig.model_validate(stage_config(**changes))


def test_a_manifest_cannot_list_an_absolute_path() -> None:
    with pytest.raises(ValidationError, match="path"):
        FileEntry(path="/etc/passwd", size=1, sha256="0" * 64)


def test_keys_of_a_run() -> None:
    assert layout.run_root("/team-prefix/", RUN) == "team-prefix/team/run-0f0e0d0c"
    assert layout.run_root("", RUN) == "team/run-0f0e0d0c"
    assert layout.claim_key("16k", 3) == "16k/attempts/003/claim.json"
    assert layout.parse_attempt_file("16k", layout.log_key("16k", 3, layout.DRIVER_LOG)) == (3, "logs/driver.log")
    assert layout.parse_attempt_file("16", layout.claim_key("16k", 3)) is None
    for name in ("", "/logs/../../../x", "/..", "/logs//x", "/logs/", "/logs/x\ny"):
        assert layout.parse_attempt_file("16k", f"16k/attempts/003{name}") is None
    assert layout.parse_samples_key(layout.samples_key("16k", 120)) == 120
    assert layout.parse_samples_key(layout.samples_ahead_key("16k", 3)) is None


@pytest.mark.parametrize("stage", ["eval", "attempts", "export", "samples", "curation", "run"])
def test_no_name_of_a_stage_makes_its_keys_anothers(stage: str) -> None:
    below = [
        layout.checkpoint_dir(stage, 1, 1),
        layout.claim_key(stage, 1),
        layout.exit_key(stage, 1),
        layout.metrics_key(stage, 1),
        layout.export_dir(stage, 1, 1),
        layout.samples_key(stage, 1),
    ]
    assert len(set(below)) == len(below)
    for key in below:
        folder = "/".join(key.split("/")[:2])
        assert layout.parse_evaluation_dir(folder) is None
        assert key != layout.RUN
    assert layout.parse_evaluation_dir(layout.evaluation_dir("0" * 64) + "/") == "0" * 64


@given(st.integers(0, 10**7), st.integers(1, 999))
def test_a_checkpoint_folder_names_step_and_ordinal(step: int, ordinal: int) -> None:
    assert layout.parse_checkpoint_dir("a/" + layout.checkpoint_dir("16k", step, ordinal) + "/") == (step, ordinal)


@pytest.mark.parametrize("name", ["step-12.a001", "step-000012", "export", "step-000012.a001.tmp"])
def test_other_folders_are_no_checkpoints(name: str) -> None:
    assert layout.parse_checkpoint_dir(name) is None


def stored(step: int, ordinal: int, minute: int) -> StoredCheckpoint:
    return StoredCheckpoint(step, ordinal, T0 + timedelta(minutes=minute), layout.checkpoint_dir("s", step, ordinal))


def test_the_highest_step_is_newest() -> None:
    newest = newest_checkpoint([stored(10, 1, 1), stored(20, 1, 2)], {1: T0})
    assert newest is not None
    assert newest.step == 20


def test_a_dead_attempt_that_commits_late_is_ignored() -> None:
    claims = {1: T0, 2: T0 + timedelta(minutes=5)}
    kept = candidates([stored(10, 1, 4), stored(20, 1, 6), stored(11, 2, 7)], claims)
    assert [(c.step, c.ordinal) for c in kept] == [(11, 2), (10, 1)]


def test_without_checkpoints_there_is_none() -> None:
    assert newest_checkpoint([], {1: T0}) is None


REQUEST = {"id": "1", "code": "print(1)", "tests": [{"input": "", "output": "1"}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tests": None}, "exactly one of tests and tests_sha256"),
        ({"tests": []}, "tests"),
        ({"kind": "function"}, "fn_name is needed"),
        ({"language": "rust"}, "language"),
        ({"tests_sha256": "0" * 64}, "exactly one"),
    ],
)
def test_a_bad_submission_names_the_field(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JudgeRequest.model_validate({**REQUEST, **changes})


@pytest.mark.parametrize(("verdict", "passed"), [("error", False), ("error", True), ("passed", None)])
def test_passed_is_null_exactly_when_the_judge_failed(verdict: str, passed: bool | None) -> None:
    with pytest.raises(ValidationError, match="passed must be null"):
        JudgeResponse.model_validate(
            {"id": "1", "passed": passed, "verdicts": [{"verdict": verdict, "seconds": 0}], "seconds": 0, "worker": "w"}
        )
