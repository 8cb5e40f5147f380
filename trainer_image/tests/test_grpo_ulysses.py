"""Attention that two ranks share against attention of the whole row on one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gloo_ranks import GlooRanks, Place

from deepcoder_trainer.grpo.attention import Segments, packed_attention
from deepcoder_trainer.grpo.ulysses import exchange

LENGTHS = [5, 1, 9, 3]
"""Sequences of a row; the third lies on both ranks."""


def shared_attention(place: Place, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """This rank's slice of the attention over `row`, and of the gradients."""
    dist.init_process_group("gloo", store=place.store(), rank=place.rank, world_size=place.world)
    try:
        group = dist.new_subgroups(place.world)[0]
        segments = Segments.of(np.array([0, *LENGTHS]).cumsum())
        width = sum(LENGTHS) // place.world
        mine = slice(place.rank * width, (place.rank + 1) * width)
        q, k, v = (torch.from_numpy(row[n][:, :, mine].copy()).requires_grad_() for n in "qkv")
        out, _ = packed_attention(
            torch.nn.Identity(), q, k, v, None, scaling=0.3, segments=segments, sequence_group=group
        )
        (out * torch.from_numpy(row["up"][:, mine])).sum().backward()
        found = {"out": out.detach(), "q": q.grad, "k": k.grad, "v": v.grad}
        return {name: value.numpy() for name, value in found.items() if value is not None}
    finally:
        dist.destroy_process_group()


def exchanged(place: Place, dtype: str) -> Any:
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
    rng = np.random.default_rng(0)
    tokens, width = sum(LENGTHS), 8
    shapes = {
        "q": (1, heads, tokens, width),
        "k": (1, kv_heads, tokens, width),
        "v": (1, kv_heads, tokens, width),
        "up": (1, tokens, heads, width),
    }
    row = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    q, k, v = (torch.from_numpy(row[n]).requires_grad_() for n in "qkv")
    segments = Segments.of(np.array([0, *LENGTHS]).cumsum())
    whole, _ = packed_attention(torch.nn.Identity(), q, k, v, None, scaling=0.3, segments=segments)
    grads = torch.autograd.grad(whole, (q, k, v), torch.from_numpy(row["up"]))
    expected = {"out": whole, **dict(zip("qkv", grads, strict=True))}
    parts = two_ranks.run(shared_attention, row)
    for name, value in expected.items():
        found = np.concatenate([part[name] for part in parts], axis=1 if name == "out" else 2)
        np.testing.assert_allclose(found, value.detach().numpy(), rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_part_goes_to_its_rank_and_its_gradient_comes_back(dtype: str, two_ranks: GlooRanks) -> None:
    (first, to_first), (second, to_second) = two_ranks.run(exchanged, dtype)
    assert first == [[0, 1], [10, 11]]
    assert second == [[2, 3], [12, 13]]
    assert to_first == to_second == [[1, 1], [2, 2]]
