"""What an evaluation measures: the newest export of a stage, a model by its bytes, and what is named by hand."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deepcoder_trainer.checkpoint.storage import open_storage
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.cli import local_run
from deepcoder_trainer.evaluation.targets import model_digest, newest_export


def test_the_newest_export_is_the_highest_step_with_a_manifest_that_no_later_claim_overtook(tmp_path: Path) -> None:
    store = open_storage(f"file://{tmp_path}")
    for key in (
        "short/attempts/001/claim.json",
        "short/export/step-000010.a001/MANIFEST.json",
        "short/attempts/002/claim.json",
        "short/export/step-000020.a002/MANIFEST.json",
        "short/export/step-000040.a001/MANIFEST.json",
        "short/export/step-000030.a002/model.safetensors",
        "shorter/export/step-000050.a001/MANIFEST.json",
    ):
        store.put_bytes(key, b"{}")
        time.sleep(0.002)  # the file system's clock ticks
    assert newest_export("short", store) == "short/export/step-000020.a002"
    assert newest_export("long", store) is None


def test_model_digest_sees_weights_and_words(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"w")
    (tmp_path / "config.json").write_text("{}")
    first = model_digest(tmp_path)
    (tmp_path / "README.md").write_text("not part of it")
    assert model_digest(tmp_path) == first
    (tmp_path / "tokenizer.json").write_text("{}")
    assert model_digest(tmp_path) != first


def options(**changes: Any) -> Any:
    import argparse

    from deepcoder_trainer.evaluation.cli import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    values: Mapping[str, Any] = {"--model": "m", "--datasets": "d=x.jsonl", "--output-dir": "out", **changes}
    return parser.parse_args([word for item in values.items() for word in item])


def test_other_settings_by_hand_get_another_folder() -> None:
    first = local_run(options())
    assert first.storage.uri == local_run(options()).storage.uri
    for change in ({"--n": "4"}, {"--temperature": "1.0"}, {"--max-length": "64"}, {"--model": "other"}):
        assert local_run(options(**change)).storage.uri != first.storage.uri
    assert local_run(options(**{"--output-dir": "/elsewhere"})).config_digest == first.config_digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--datasets": "x.jsonl"}, "write NAME=URI"),
        ({"--n": "0"}, "samplesPerProblem|samples_per_problem"),
        ({"--top-p": "0"}, "evaluationTopP|evaluation_top_p"),
    ],
)
def test_wrong_options_by_hand_are_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        local_run(options(**change))
