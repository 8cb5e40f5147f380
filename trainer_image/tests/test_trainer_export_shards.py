"""Files of stored models are read by ranges, and one that is not what it says is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepcoder_trainer.checkpoint.errors import CheckpointDamaged
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.learner.rank_settings import METADATA


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a header of 0 bytes in a file of 0"),
        (b"\xff" * 8 + b"{}", "a header of 18446744073709551615 bytes in a file of 10"),
        (b"\x02" + b"\0" * 7 + b"[]", "cannot be read"),
        (b"\x03" + b"\0" * 7 + b"{{{", "cannot be read"),
        ({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, "w is not where its header says"),
        ({"w": {"dtype": "F32", "shape": [3], "data_offsets": [-4, 8]}}, "w is not where its header says"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, "w is not where its header says"),
        ({"w": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, "w is not where its header says"),
        ({"w": {"dtype": "F32", "shape": [-1, -3], "data_offsets": [0, 12]}}, "w is not where its header says"),
        ({"w": {"dtype": "F32", "shape": [3.0], "data_offsets": [0, 12]}}, "w is not where its header says"),
        ({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0.0, 12.0]}}, "w is not where its header says"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "cannot be read"),
        ({"w": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}, "cannot be read"),
        ({"w": {"dtype": "F32", "shape": "xy", "data_offsets": [0, 4]}}, "cannot be read"),
    ],
)
def test_a_stored_file_that_is_not_what_it_says_is_refused_by_name(content: Any, said: str, tmp_path: Path) -> None:
    from deepcoder_trainer.export.shards import StoredFolder

    if isinstance(content, dict):
        header = json.dumps(content).encode()
        content = len(header).to_bytes(8, "little") + header + b"\0" * 12
    (tmp_path / "a.safetensors").write_bytes(content)
    folder = StoredFolder(open_storage(f"file://{tmp_path}"), {"a.safetensors": len(content)})
    with pytest.raises(CheckpointDamaged, match=r"a\.safetensors cannot be read") as refused:
        folder.shapes("a.safetensors")
    assert said in str(refused.value)


def test_stored_rows_are_those_of_the_file(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from deepcoder_trainer.export.shards import StoredFolder

    weights = {
        "a": torch.arange(35, dtype=torch.float32).reshape(7, 5),
        "b": torch.arange(6, dtype=torch.bfloat16).reshape(3, 1, 2),
    }
    save_file(weights, tmp_path / "a.safetensors", metadata={"format": "pt"})
    size = (tmp_path / "a.safetensors").stat().st_size
    folder = StoredFolder(open_storage(f"file://{tmp_path}"), {"a.safetensors": size, "notes.txt": 3})
    assert folder.names() == ["a.safetensors"]
    assert folder.shapes("a.safetensors") == {"a": (7, 5), "b": (3, 1, 2)}
    assert torch.equal(folder.rows("a.safetensors", "a", 2, 5), weights["a"][2:5])
    assert torch.equal(folder.rows("a.safetensors", "a", 6, 99), weights["a"][6:])
    assert torch.equal(folder.rows("a.safetensors", "b", 0, 3), weights["b"])
    with pytest.raises(CheckpointDamaged, match="has no c"):
        folder.rows("a.safetensors", "c", 0, 1)
    with pytest.raises(CheckpointDamaged, match=r"has no b\.safetensors"):
        folder.shapes("b.safetensors")


def test_a_weight_of_which_a_part_lies_nowhere_makes_a_damaged_checkpoint(tmp_path: Path) -> None:
    """What no file holds would be whatever lay in memory, and be published."""
    import torch
    from safetensors.torch import save_file

    from deepcoder_trainer.export.shards import Folder
    from deepcoder_trainer.export.tensors import CheckpointTensors

    save_file({"a": torch.ones(2, 3)}, tmp_path / "a.safetensors")
    chunk = {"offsets": [0, 0], "sizes": [2, 3], "file": "a.safetensors", "key": "a"}
    tensors = {"model.w": {"dtype": "torch.float32", "size": [3, 3], "chunks": [chunk]}}
    (tmp_path / METADATA).write_text(json.dumps({"tensors": tensors}))
    checkpoint = CheckpointTensors(Folder(tmp_path))
    assert torch.equal(checkpoint.rows("w", 0, 2), torch.ones(2, 3))
    with pytest.raises(CheckpointDamaged, match="w of the checkpoint is not whole: its files hold 6 numbers of 9"):
        checkpoint.get("w")
