"""Causal attention within packed sequences, registered under the name that our models are configured with.

transformers looks up attention by name, so one function serves every architecture. On CUDA in half precision it calls
`varlen_attn`, which takes the packed row unchanged. Elsewhere it calls scaled dot-product attention on one sequence at
a time, because in a padded batch every sequence would cost the square of the longest one. Either way, a token attends
only to itself and to earlier tokens of its own sequence. If several ranks share the row, an all-to-all first gives each
rank all tokens of some of the heads (see `ulysses`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface

from deepcoder_trainer.grpo.ulysses import heads_to_tokens, tokens_to_heads
from deepcoder_trainer.types import IntArray

NAME = "deepcoder_packed"
"""Value of `attn_implementation` for our models."""


@dataclass(frozen=True)
class Segments:
    """Boundaries of the S sequences in a packed row of N tokens, computed once per micro-batch."""

    cu_seqlens: Tensor
    """[S + 1] int32, on the device: index of the first token of each sequence, then N."""

    lengths: tuple[int, ...]
    """Number of tokens of each sequence, on the host."""

    longest: int
    """Number of tokens of the longest sequence."""

    @classmethod
    def of(cls, cu_seqlens: IntArray, device: torch.device | str = "cpu") -> Segments:
        """Build from [S + 1] offsets on the host. Lengths are kept there: reading them from the GPU would sync."""
        lengths = tuple(np.diff(cu_seqlens).tolist())
        return cls(torch.from_numpy(cu_seqlens.astype(np.int32)).to(device), lengths, max(lengths))


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    segments: Segments,
    sequence_group: dist.ProcessGroup | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention output, [1, n, heads, D]. query: [1, heads, n, D]; key, value: [1, KV heads, n, D].

    Without a `sequence_group`, n is N, the number of tokens in `segments`. With one, n is N / ranks: this rank's slice.
    """
    if sequence_group is None:
        return _attend(query, key, value, scaling, segments), None
    attended = _attend(*tokens_to_heads(query, key, value, sequence_group), scaling, segments)
    return heads_to_tokens(attended, sequence_group), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, segments: Segments) -> Tensor:
    """Attend over all N tokens. query: [1, heads, N, D]; key, value: [1, KV heads, N, D]. Returns [1, N, heads, D]."""
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        out = varlen_attn(
            q,
            k,
            v,
            segments.cu_seqlens,
            segments.cu_seqlens,
            segments.longest,
            segments.longest,
            scale=scaling,
            window_size=(-1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(out, Tensor)
        return out.unsqueeze(0)
    if query.is_cuda:
        groups = query.shape[1] // key.shape[1]
        key, value = _repeat_heads(key, groups), _repeat_heads(value, groups)
    parts = [
        functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        for q, k, v in zip(*(x.split(segments.lengths, dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


def _repeat_heads(x: Tensor, groups: int) -> Tensor:
    """Return [1, KV heads × groups, N, D] from [1, KV heads, N, D], each head `groups` times in a row.

    In float32 on CUDA, only the kernel that stores N × N scores accepts grouped heads (torch's documentation of
    `enable_gqa`). Repeated heads are accepted by the memory-efficient kernel.
    """
    if groups == 1:
        return x
    return x.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2)


def _no_mask(*_: Any, **__: Any) -> None:
    """Build no mask: `segments` holds the boundaries of the sequences."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
