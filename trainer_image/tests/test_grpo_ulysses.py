"""Attention that two ranks share against attention of the whole row on one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gloo_ranks import GlooRanks, Place
from lazy_modules import LazyModule

torch = LazyModule("torch")
dist = LazyModule("torch.distributed")

LENGTHS = [5, 1, 9, 3]
"""Sequences of a row; the third lies on both ranks."""


def shared_attention(place: Place, row: dict[str, np.ndarray], device: str, dtype: str) -> dict[str, np.ndarray]:
    """This rank's slice of the attention over `row`, and of the gradients."""
    if device == "cuda":
        torch.cuda.set_device(place.rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=place.store(), rank=place.rank, world_size=place.world)
    try:
        width = sum(LENGTHS) // place.world
        mine = slice(place.rank * width, (place.rank + 1) * width)
        part = {name: x[:, mine] if name == "up" else x[:, :, mine] for name, x in row.items()}
        return attention(part, device, dtype, dist.new_subgroups(place.world)[0])
    finally:
        dist.destroy_process_group()


def attention(
    row: dict[str, np.ndarray], device: str, dtype: str, group: dist.ProcessGroup | None = None
) -> dict[str, np.ndarray]:
    """The attention over what `row` holds, and the gradients."""
    from deepcoder_trainer.grpo.attention import Segments, packed_attention

    segments = Segments.of(np.array([0, *LENGTHS]).cumsum(), device)
    q, k, v, up = (torch.from_numpy(row[n].copy()).to(device, getattr(torch, dtype)) for n in ("q", "k", "v", "up"))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out, _ = packed_attention(torch.nn.Identity(), *inputs, None, scaling=0.3, segments=segments, sequence_group=group)
    found = [out.detach(), *torch.autograd.grad(out, inputs, up)]
    return {name: x.to("cpu", torch.float64).numpy() for name, x in zip(("out", *"qkv"), found, strict=True)}


def random_row(heads: int, kv_heads: int, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = sum(LENGTHS)
    shapes = {"q": (1, heads, tokens, width), "up": (1, tokens, heads, width)}
    shapes |= dict.fromkeys("kv", (1, kv_heads, tokens, width))
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def assert_same(parts: Sequence[dict[str, np.ndarray]], whole: dict[str, np.ndarray], tolerance: float) -> None:
    for name, value in whole.items():
        found = np.concatenate([part[name] for part in parts], axis=1 if name == "out" else 2)
        np.testing.assert_allclose(found, value, rtol=0, atol=tolerance, err_msg=name)


def exchanged(place: Place, dtype: str) -> Any:
    from deepcoder_trainer.grpo.ulysses import exchange

    dist.init_process_group("gloo", store=place.store(), rank=place.rank, world_size=place.world)
    try:
        group = dist.new_subgroups(place.world)[0]
        x = (torch.arange(4) + 10 * place.rank).to(getattr(torch, dtype)).view(2, 2).requires_grad_()
        y = exchange(x, group)
        (y * (1 + place.rank)).sum().backward()
        return y.tolist(), x.grad.tolist()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (6, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-6)])
def test_two_ranks_attend_like_one(
    heads: int, kv_heads: int, dtype: str, tolerance: float, two_ranks: GlooRanks
) -> None:
    row = random_row(heads, kv_heads, 8)
    assert_same(two_ranks.run(shared_attention, row, "cpu", dtype), attention(row, "cpu", dtype), tolerance)


@pytest.mark.gpu
@pytest.mark.usefixtures("two_gpus")  # an all-to-all over NCCL is between devices
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_two_gpus_attend_like_one(heads: int, kv_heads: int, two_ranks: GlooRanks) -> None:
    row = random_row(heads, kv_heads, 64)
    assert_same(two_ranks.run(shared_attention, row, "cuda", "bfloat16"), attention(row, "cuda", "bfloat16"), 2e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_part_goes_to_its_rank_and_its_gradient_comes_back(dtype: str, two_ranks: GlooRanks) -> None:
    (first, to_first), (second, to_second) = two_ranks.run(exchanged, dtype)
    assert first == [[0, 1], [10, 11]]
    assert second == [[2, 3], [12, 13]]
    assert to_first == to_second == [[1, 1], [2, 2]]
