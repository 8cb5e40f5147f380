"""Causal attention within packed sequences, under the name that the models are configured with.

transformers looks attention up by name, so one function serves every architecture. On CUDA in half precision it is
`varlen_attn`, which takes the packed row as it is. Elsewhere it is scaled dot-product attention, one sequence at a
time: a padded batch would cost the square of its longest sequence for each of them. Either way a token sees its own
sequence's past and nothing else. With a group of ranks that share the row, it is gathered first (see `ulysses`).
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
    """Where the sequences of a packed row are, made once a micro-batch."""

    cu_seqlens: Tensor
    """[S + 1] int32, first token of each sequence, and N."""

    lengths: tuple[int, ...]
    """Tokens of each sequence, known to the host."""

    longest: int
    """Tokens of the longest sequence."""

    @classmethod
    def of(cls, cu_seqlens: IntArray, device: torch.device | str = "cpu") -> Segments:
        """From [S + 1] offsets. The host knows the lengths: one read back from a device would wait for it."""
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
    """query: [1, heads, n, D]; key, value: [1, KV heads, n, D]. Returns [1, n, heads, D].

    n is the N tokens of `segments`, or with a `sequence_group` this rank's equal part of them.
    """
    if sequence_group is None:
        return _attend(query, key, value, scaling, segments), None
    attended = _attend(*tokens_to_heads(query, key, value, sequence_group), scaling, segments)
    return heads_to_tokens(attended, sequence_group), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, segments: Segments) -> Tensor:
    """The same over all N tokens."""
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
    parts = [
        functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        for q, k, v in zip(*(x.split(segments.lengths, dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


def _no_mask(*_: Any, **__: Any) -> None:
    """The sequences' bounds travel as `segments`; no mask is materialized."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
