"""Checkpoint files: nothing but safetensors and JSON, equal to the bit after a round trip, background save included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lazy_modules import LazyModule

from deepcoder_trainer.checkpoint.errors import CheckpointDamaged
from deepcoder_trainer.learner.group import plan_batch

torch = LazyModule("torch")


def state(learner: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in learner.rank._state(optimizer=True).items()}


def test_four_steps_equal_two_steps_saved_and_loaded_and_two_more(
    make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    plans = [plan_batch(make_batch(seed), make_learner().rank.recipe, 64, 1)[0] for seed in range(4)]
    straight = make_learner()
    for plan in plans:
        straight.rank.train(plan)
    first = make_learner()
    for plan in plans[:2]:
        first.rank.train(plan)
    first.rank.save(tmp_path)
    first.rank.saved(tmp_path).files()
    second = make_learner()
    second.rank.load(tmp_path, optimizer=True)
    for plan in plans[2:]:
        second.rank.train(plan)
    a, b = state(straight), state(second)
    assert any("exp_avg_sq" in k for k in a)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_save_holds_the_state_of_its_moment_though_training_goes_on(
    make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    learner = make_learner()
    plan = plan_batch(make_batch(), learner.rank.recipe, 64, 1)[0]
    learner.rank.train(plan)
    expected = state(learner)
    learner.rank.save(tmp_path)
    learner.rank.train(plan)
    [tensors, scalars, metadata] = learner.rank.saved(tmp_path).files()
    stored = load_file(tensors) | load_file(scalars)
    places = json.loads(metadata.read_text())["tensors"]
    assert set(places) == set(expected)
    for name, entry in places.items():
        assert torch.equal(stored[entry["chunks"][0]["key"]], expected[name])


def test_without_optimizer_a_load_starts_it_from_zero(
    make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    learner = make_learner()
    plan = plan_batch(make_batch(), learner.rank.recipe, 64, 1)[0]
    learner.rank.train(plan)
    learner.rank.save(tmp_path)
    learner.rank.saved(tmp_path).files()
    learner.rank.load(tmp_path, optimizer=False)
    assert all(not v.any() for k, v in state(learner).items() if k.startswith("optimizer."))


def test_only_safetensors_and_json_are_written(make_learner: Callable, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    learner = make_learner()
    learner.rank.save(tmp_path)
    files = learner.rank.saved(tmp_path).files()
    assert sorted(files) == sorted(p for p in tmp_path.rglob("*") if p.is_file())
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.suffix == ".safetensors"
            load_file(path)


def test_what_is_no_tensor_is_refused_instead_of_pickled(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    from deepcoder_trainer.learner.dcp import SafetensorsWriter

    with pytest.raises(CheckpointException, match="is not a tensor"):
        dcp.save({"lr": 0.1}, storage_writer=SafetensorsWriter(tmp_path, 0), no_dist=True)
    assert list(tmp_path.iterdir()) == []


def test_large_states_are_split_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed.checkpoint as dcp

    from deepcoder_trainer.learner import dcp as ours
    from deepcoder_trainer.learner.dcp import SafetensorsReader, SafetensorsWriter

    monkeypatch.setattr(ours, "_FILE_BYTES", 100)
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(5)} | {"scalar": torch.tensor(3.0)}
    writer = SafetensorsWriter(tmp_path, 0)
    dcp.save(dict(tensors), storage_writer=writer, no_dist=True)
    assert len([p for p in writer.files if p.suffix == ".safetensors"]) == 4
    target = {k: torch.zeros_like(v) for k, v in tensors.items()}
    dcp.load(target, storage_reader=SafetensorsReader(tmp_path), no_dist=True)
    assert all(torch.equal(target[k], tensors[k]) for k in tensors)


@pytest.mark.parametrize(
    "damage",
    [
        "missing metadata",
        "metadata is no JSON",
        "path leaves the folder",
        "a part is nowhere",
        "missing file",
        "file is cut",
    ],
)
def test_damaged_files_are_told_as_damage(damage: str, make_learner: Callable, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    learner = make_learner()
    learner.rank.save(tmp_path)
    [tensors, _, metadata] = learner.rank.saved(tmp_path).files()
    if damage == "missing metadata":
        metadata.unlink()
    elif damage == "metadata is no JSON":
        metadata.write_text("{")
    elif damage == "path leaves the folder":
        metadata.write_text(metadata.read_text().replace("rank-00000", "../rank-00000"))
        save_file(load_file(tensors), tmp_path / tensors.name)
    elif damage == "a part is nowhere":
        document = json.loads(metadata.read_text())
        document["tensors"]["model.model.norm.weight"]["chunks"] = []
        metadata.write_text(json.dumps(document))
    elif damage == "missing file":
        tensors.unlink()
    else:
        tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(CheckpointDamaged, match=r"metadata\.json|rank-00000"):
        learner.rank.load(tmp_path, optimizer=True)
