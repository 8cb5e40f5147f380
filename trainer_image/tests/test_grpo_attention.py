"""Packed attention costs what its sequences do, and gives each the same bits whatever it is packed with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lazy_modules import LazyModule

torch = LazyModule("torch")


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    from deepcoder_trainer.grpo.attention import Segments, packed_attention

    segments = Segments.of(np.array([0, *lengths]).cumsum())
    return packed_attention(torch.nn.Identity(), q, k, v, None, scaling=0.3, segments=segments)[0]


def test_one_long_sequence_makes_short_ones_no_dearer(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn import functional

    squares = []
    attention = functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        squares.append(query.shape[0] * query.shape[2] ** 2)
        return attention(query, *args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    lengths = [200, *[3] * 50]
    attend(*torch.randn(3, 1, 2, sum(lengths), 4), lengths)
    assert sum(squares) == sum(n**2 for n in lengths)


def test_a_sequence_has_the_same_bits_in_any_company() -> None:
    torch.manual_seed(0)
    lengths = [7, 70, 300, 1, 33]
    q, k, v = torch.randn(3, 1, 4, sum(lengths), 16)
    packed = attend(q, k, v, lengths)
    start = 0
    for n in lengths:
        part = slice(start, start + n)
        alone = attend(q[:, :, part], k[:, :, part], v[:, :, part], [n])
        assert torch.equal(packed[:, part], alone)
        start += n


def test_grouped_heads_in_float32_on_a_gpu_are_repeated_since_no_linear_kernel_takes_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No GPU is needed: the tensors have shapes and a device, and no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn import functional

    asked = []

    def recorded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, enable_gqa: bool, **_: Any) -> Any:
        asked.append((key.shape[1], value.shape[1], enable_gqa))
        return query

    monkeypatch.setattr(functional, "scaled_dot_product_attention", recorded)
    with FakeTensorMode():
        q, k, v = (torch.empty(1, heads, 8, 4, device="cuda") for heads in (6, 2, 2))
        attend(q, k, v, [5, 3])
    assert asked == [(6, 6, False)] * 2


def test_repeated_heads_attend_as_grouped_ones() -> None:
    from torch.nn import functional

    from deepcoder_trainer.grpo.attention import _repeat_heads

    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 8, 4, dtype=torch.float64) for heads in (6, 2, 2))
    grouped = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    repeated = functional.scaled_dot_product_attention(q, _repeat_heads(k, 3), _repeat_heads(v, 3), is_causal=True)
    torch.testing.assert_close(grouped, repeated)
