"""A model's folder is the same model to samplers as to learners, whatever else lies in it."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
from lazy_modules import LazyModule

from deepcoder_trainer.errors import BadConfig, SamplerLost
from deepcoder_trainer.sampler import pretrained
from deepcoder_trainer.sampler.group import SamplerGroup
from deepcoder_trainer.sampler.pretrained import pretrained_chunks, push_pretrained
from deepcoder_trainer.types import Finish, Generation, GenerationRequest, WeightRefs

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


class Chunk:
    """A reference to weights: what it refers to takes memory as long as it lives."""


class Engine:
    def __init__(self) -> None:
        self.version: int | None = None
        self.dead = False

    async def start(self) -> None: ...

    async def generate(self, request: GenerationRequest) -> Generation:
        if self.dead:
            raise SamplerLost("it died")
        return Generation(np.zeros(1, np.int32), np.zeros(1, np.float32), Finish.STOP, f"{self.version}", ())

    async def update_weights(self, refs: WeightRefs, version: int, clear_cache: bool) -> None:
        self.version = version

    async def sleep(self) -> None: ...

    async def wake(self) -> None: ...

    async def close(self) -> None: ...


async def test_a_model_is_gone_before_the_next_is_put_in_its_place_and_replacements_get_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object store has no room for two."""
    live: weakref.WeakSet[Chunk] = weakref.WeakSet()
    before: list[int] = []

    def put(folder: Path, dtype: str) -> WeightRefs:
        before.append(len(live))
        chunk = Chunk()
        live.add(chunk)
        return WeightRefs((chunk,), dtype)

    monkeypatch.setattr(pretrained, "_put_chunks", put)
    engines: list[Engine] = []

    def make() -> Engine:
        engines.append(Engine())
        return engines[-1]

    group = SamplerGroup(make, 1)
    await group.start()
    for version in (1, 2):
        await push_pretrained(group, tmp_path, version, "float32")
        engines[-1].dead = True
        answer = await group.generate(GenerationRequest("r", np.zeros(1, np.int32), 1, 1.0, seed=1))
        assert answer.text == f"{version}"
    await group.close()
    assert (before, len(engines)) == ([0, 0], 3)
