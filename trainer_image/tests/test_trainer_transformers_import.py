"""transformers is loaded with less reading, and finds what it would have found."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lazy_modules import LazyModule

from deepcoder_trainer.transformers_import import fast_transformers_import, packages_distributions, read_once

transformers = LazyModule("transformers")
MODELS = ("auto", "gemma", "qwen2", "qwen3", "llama", "clip", "whisper")


def install(folder: Path, name: str, files: dict[str, str]) -> None:
    made = folder / f"{name}-1.0.dist-info"
    made.mkdir()
    for path, text in files.items():
        (made / path).write_text(text)


def test_packages_are_found_as_by_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = "Metadata-Version: 2.1\nName: {}\nVersion: 1.0\n\nName: another\n"
    install(tmp_path, "pillow", {"METADATA": about.format("Pillow"), "top_level.txt": "PIL\n_images\n"})
    recorded = 'one/__init__.py,sha256=a,1\n"one/a,b.py",,\nalone.py,,\none/data.json,,\nbin/tool,,\n'
    install(tmp_path, "recorded", {"METADATA": about.format("Recorded"), "RECORD": recorded})
    install(tmp_path, "again", {"METADATA": about.format("again"), "top_level.txt": "one"})
    install(tmp_path, "empty", {"METADATA": about.format("empty"), "top_level.txt": "", "RECORD": ""})
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    found = packages_distributions()
    assert found == importlib.metadata.packages_distributions()
    assert found.keys() == {"PIL", "_images", "one", "alone"}
    assert found["PIL"] == ["Pillow"]


@pytest.fixture(scope="module")
def loaded() -> Any:
    """Another copy of the module of transformers that reads all this, loaded as it is loaded first."""
    with fast_transformers_import():
        spec = sys.meta_path[0].find_spec("transformers.utils.import_utils", transformers.utils.__path__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1\n",
        '__all__ = ["A"]',
        'x = 1\n\n__all__ = ["A", "B"]\n',
        'x = 1\n__all__ = [\n    "A",\n    "B",\n]\n',
        '__all__ = ["old"]\n\n__all__ = ["A"]\n',
        'print(__all__)\nx = "A"\n',
        '    __all__ = ["inner"]\n',
    ],
)
def test_names_of_a_module_are_those_that_transformers_finds(loaded: Any, text: str) -> None:
    assert loaded.fetch__all__(text) == loaded.fetch__all__.__wrapped__(text)


def test_each_model_is_read_once_and_with_the_same_names(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    structure = loaded.create_import_structure_from_path
    folder = Path(transformers.__file__).parent / "models"
    whole = structure(folder)
    read = structure.cache_info().misses
    assert read > len(whole)
    assert structure(str(folder / "__init__.py")) == whole, "by its other name, under which it is read the second time"
    assert structure.cache_info().misses == read + 1, "and all that is in it is known"
    monkeypatch.setattr(loaded, "fetch__all__", loaded.fetch__all__.__wrapped__)
    assert {name: whole[name] for name in MODELS} == {
        name: structure.__wrapped__(str(folder / name)) for name in MODELS
    }
    assert all(whole[name] for name in MODELS)
    assert loaded.PACKAGE_DISTRIBUTION_MAPPING["PIL"] == ["pillow"]


def test_a_version_that_reads_otherwise_is_left_as_it_is() -> None:
    other = SimpleNamespace(create_import_structure_from_path=len)
    read_once(other)
    assert vars(other) == {"create_import_structure_from_path": len}


def test_nothing_else_is_loaded_otherwise_and_nothing_once_it_is_over(tmp_path: Path) -> None:
    before: list[Callable[..., object]] = list(sys.meta_path)
    standard = importlib.metadata.packages_distributions
    with fast_transformers_import():
        [finder] = [each for each in sys.meta_path if each not in before]
        assert finder.find_spec("json", None) is None
        spec = finder.find_spec("transformers.utils.import_utils", [str(tmp_path)])
        assert spec is None, "it is not installed there"
    assert sys.meta_path == before
    assert importlib.metadata.packages_distributions is standard
