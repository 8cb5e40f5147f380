"""Causal attention within packed sequences, under the name that the models are configured with.

transformers looks attention up by name, so one function serves every architecture. On CUDA in half precision it is
`varlen_attn`, which takes the packed row as it is. Elsewhere each sequence becomes one row of a padded batch of
scaled dot-product attention; padding follows the tokens, so that the causal rule alone keeps it out. Either way a
token sees its own sequence's past and nothing else.
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

    longest: int
    """Tokens of the longest sequence."""

    to_padded: Tensor
    """[S * longest] int64, token for each place of the padded batch (token 0 where it is padding)."""

    from_padded: Tensor
    """[N] int64, place of each token in the padded batch."""

    @classmethod
    def of(cls, cu_seqlens: IntArray, device: torch.device | str = "cpu") -> Segments:
        """From [S + 1] offsets. All is computed on the host: a length read back from a device would wait for it."""
        lengths = np.diff(cu_seqlens)
        longest = int(lengths.max())
        place = np.arange(longest)
        real = place[None, :] < lengths[:, None]
        to_padded = np.where(real, cu_seqlens[:-1, None] + place[None, :], 0).ravel()
        return cls(
            torch.from_numpy(cu_seqlens.astype(np.int32)).to(device),
            longest,
            torch.from_numpy(to_padded.astype(np.int64)).to(device),
            torch.from_numpy(np.flatnonzero(real)).to(device),
        )


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
    rows = len(segments.cu_seqlens) - 1
    q, k, v = (_padded(x, segments, rows) for x in (query, key, value))
    out = functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    flat = out.transpose(1, 2).reshape(rows * segments.longest, query.shape[1], query.shape[3])
    return flat.index_select(0, segments.from_padded).unsqueeze(0)


def _padded(x: Tensor, segments: Segments, rows: int) -> Tensor:
    """[1, heads, N, D] to [S, heads, longest, D]."""
    heads, _, width = x.shape[1:]
    taken = x[0].transpose(0, 1).index_select(0, segments.to_padded)
    return taken.view(rows, segments.longest, heads, width).transpose(1, 2)


def _no_mask(*_: Any, **__: Any) -> None:
    """The sequences' bounds travel as `segments`; no mask is materialized."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
