"""Logits layer by layer are those of the whole model, FP8's are what its numbers say, and shards make up a weight."""

from __future__ import annotations

import json
import re
from pathlib import Path

import export_world
import pytest

from deepcoder_trainer.checkpoint.errors import CheckpointDamaged
from deepcoder_trainer.export import prompts
from deepcoder_trainer.export.errors import ExportFailed

PROMPTS = [[5, 9, 300, 41, 7, 8, 120, 77], [3, 3, 88]]


@pytest.mark.parametrize("rope", [None, 512], ids=["plain", "yarn"])
@pytest.mark.parametrize("architecture", ["Qwen2", "Qwen3", "Llama"])
def test_logits_layer_by_layer_are_the_whole_models(architecture: str, rope: int | None, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from deepcoder_trainer.export import huggingface
    from deepcoder_trainer.export.forward import Layerwise
    from deepcoder_trainer.export.shards import Folder
    from deepcoder_trainer.export.tensors import PretrainedTensors

    directory = export_world.make_model(tmp_path, architecture)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | huggingface.positions(config, rope, None)))
    model = Layerwise(directory, PretrainedTensors(Folder(directory)))
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    for prompt, hidden in zip(PROMPTS, model.hidden(PROMPTS), strict=True):
        with torch.no_grad():
            expected = whole(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(model.logits(hidden), expected, rtol=0, atol=1e-4)
        assert float(expected.abs().max()) > 1


def test_fp8_keeps_each_channel_within_its_own_rounding() -> None:
    import torch

    from deepcoder_trainer.export.fp8 import LARGEST, linear, quantize

    value = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 4, 16)[:, None]
    value[3] = 0
    rounded, scale = quantize(value)
    assert rounded.dtype is torch.float8_e4m3fn
    assert scale.shape == (16, 1)
    assert float(rounded.to(torch.float32).abs().amax(dim=1)[0]) == LARGEST
    restored = rounded.to(torch.float32) * scale
    # 3 bits of mantissa: half a sixteenth of a value, and of the smallest a fixed step.
    assert ((restored - value).abs() <= value.abs() / 16 + scale * 2**-9).all()
    assert not restored[3].any()
    module = torch.nn.Linear(64, 8, bias=False)
    with torch.no_grad():
        exact, served = module(value), linear(module, value)
    assert 0 < float((served - exact).abs().max() / exact.abs().max()) < 0.05


def test_a_weight_is_put_together_from_the_shards_of_all_ranks(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from deepcoder_trainer.export.shards import Folder
    from deepcoder_trainer.export.tensors import CheckpointTensors

    whole = torch.arange(35, dtype=torch.float32).reshape(7, 5)
    parts = {"rank-00000-000": (0, whole[:4]), "rank-00001-000": (4, whole[4:])}
    chunks = []
    for name, (offset, part) in parts.items():
        save_file({"w": part.contiguous()}, tmp_path / f"{name}.safetensors")
        chunks.append({"offsets": [offset, 0], "sizes": list(part.shape), "file": f"{name}.safetensors", "key": "w"})
    entry = {"dtype": "torch.float32", "size": [7, 5], "chunks": chunks}
    other = {"dtype": "torch.float32", "size": [7], "chunks": [{**chunks[0], "file": "rank-00009-000.safetensors"}]}
    metadata = json.dumps(
        {"schemaVersion": 1, "tensors": {"model.a.weight": entry, "optimizer.a.weight.exp_avg": other}}
    )
    (tmp_path / "metadata.json").write_text(metadata)
    tensors = CheckpointTensors(Folder(tmp_path))
    assert tensors.names() == ["a.weight"]
    assert tensors.files(metadata.encode()) == ["rank-00000-000.safetensors", "rank-00001-000.safetensors"]
    assert torch.equal(tensors.get("a.weight"), whole)
    assert torch.equal(tensors.rows("a.weight", 3, 6), whole[3:6])
    (tmp_path / "rank-00001-000.safetensors").unlink()
    with pytest.raises(CheckpointDamaged, match="rank-00001-000"):
        tensors.get("a.weight")


def test_figures_of_a_difference_are_those_of_the_textbook() -> None:
    import torch

    from deepcoder_trainer.export.compare import difference

    source = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    export = torch.tensor([[0.0, 1.0, 99.0], [2.0, 0.0, 99.0]])  # a row more: padding of the vocabulary
    found = difference(lambda _: source, lambda _: export, [2])
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]).softmax(0)
    assert found.max_abs == 1
    assert found.mean_kl == pytest.approx(float((p * (p / q).log()).sum()) / 2)
    assert (found.top1, found.positions) == (0.5, 2)
    with pytest.raises(ExportFailed, match="not finite"):
        difference(lambda _: source, lambda _: export * float("nan"), [2])


def test_prompts_are_the_same_for_everybody() -> None:
    assert prompts.texts() == prompts.texts()
    assert len(set(prompts.texts())) == prompts.COUNT
    assert all(re.search(r"```python\n", text) for text in prompts.texts())
