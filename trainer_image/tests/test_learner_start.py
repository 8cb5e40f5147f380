"""A learner rank asks for its model again if the folder on its machine may lack files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import ModelSource
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.learner.actor import LearnerActor
from deepcoder_trainer.learner.rank_settings import RankSettings


@pytest.fixture
def loaded_from(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the folders from which ranks load their model. Nothing is loaded."""
    folders: list[str] = []

    def rank(settings: RankSettings, *_: Any) -> SimpleNamespace:
        folders.append(settings.model_dir)
        return SimpleNamespace()

    for name, classes in {"rank": {"LearnerRank": rank}, "files": {"RankFiles": lambda _rank: None}}.items():
        module = ModuleType(f"deepcoder_trainer.learner.{name}")
        vars(module).update(classes)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return folders


@pytest.mark.parametrize(
    ("uri", "there", "asked"),
    [
        ("hf://organization/name", True, True),
        ("hf://organization/name", False, True),
        ("s3://bucket/name", True, False),
        ("s3://bucket/name", False, True),
        ("/models/name", True, False),
    ],
)
def test_a_folder_of_a_hub_that_a_killed_download_left_is_not_taken_for_a_model(
    uri: str,
    there: bool,
    asked: bool,
    loaded_from: list[str],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only a hub's downloads are in their place before all files are there."""
    whole, place = tmp_path / "whole", tmp_path / "place"
    if there:
        place.mkdir()
    monkeypatch.setattr(Sources, "model", lambda _self, _source: whole)
    settings = RankSettings(str(place), make_recipe(), 0, False, 1, 60)
    LearnerActor(settings, 1, ModelSource(uri=uri), Sources(tmp_path)).start(0, None)
    assert loaded_from == [str(whole if asked else place)]
