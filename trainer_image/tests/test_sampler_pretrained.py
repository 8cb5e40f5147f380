"""A model's folder is the same model to samplers as to learners, whatever else lies in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lazy_modules import LazyModule

from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.sampler.pretrained import pretrained_chunks

torch = LazyModule("torch")


def save(path: Path, **values: float) -> None:
    from safetensors.torch import save_file

    save_file({name: torch.full((2,), value) for name, value in values.items()}, path)


def loaded(folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for chunk in pretrained_chunks(folder, "float32"):
        for name, array in chunk.items():
            assert name not in found, "once"
            found[name] = float(array[0])
    return found


def test_weights_beside_those_of_the_index_are_not_loaded(tmp_path: Path) -> None:
    save(tmp_path / "model-00001-of-00002.safetensors", a=1.0, stale=9.0)
    save(tmp_path / "model-00002-of-00002.safetensors", b=2.0)
    save(tmp_path / "consolidated.safetensors", a=9.0, b=9.0)
    named = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    assert loaded(tmp_path) == {"a": 1.0, "b": 2.0}


def test_without_an_index_the_one_file_that_learners_read_is_loaded(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", a=1.0)
    save(tmp_path / "consolidated.safetensors", a=9.0)
    assert loaded(tmp_path) == {"a": 1.0}


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"no model\.safetensors"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            '{"weight_map": {"a": "model-00001-of-00001.safetensors"}}',
            "names model-00001-of-00001.safetensors, which is",
        ),
        ('{"weight_map": {"a": null}}', "is no index of weights"),
        ('{"metadata": {}}', "is no index of weights"),
        ('{"weight_map": {', "is no index of weights"),
    ],
    ids=["of a file that did not arrive", "of no file", "of nothing", "cut off"],
)
def test_an_index_that_leads_to_no_weights_is_refused(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BadConfig, match=message) as caught:
        loaded(tmp_path)
    assert caught.value.field == "model.uri"
