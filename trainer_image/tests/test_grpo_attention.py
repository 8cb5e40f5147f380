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
