"""Sequence-parallel attention (Ulysses: Jacobs et al. 2023, arXiv 2309.14509).

Each rank of a group holds an equal slice of a row's tokens, for all operations that work token by token. Attention
needs the whole row: an all-to-all exchanges all heads of some tokens for all tokens of some heads, each rank attends
for its heads, and a second all-to-all reverses the exchange. Head h goes to rank floor(h * ranks / heads). If there are
fewer KV heads than ranks, each KV head is sent to all ranks whose query heads it serves, and their gradients add up.
All ranks of the group must call this for the same row, forward and backward; otherwise they wait until the collective
times out. The heads must be divisible (`sp_refusals` of `deepcoder_contracts.model_shape`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def tokens_to_heads(
    query: Tensor, key: Tensor, value: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange all heads of this rank's tokens for all tokens of this rank's heads. Collective over `group`.

    Each tensor is [1, heads, N / ranks, D] and becomes [1, heads / ranks, N, D]; with fewer KV heads than ranks, keys
    and values become [1, 1, N, D].
    """
    ranks = group.size()
    parts = [_by_rank(x[0], ranks) for x in (query, key, value)]
    # One all-to-all for all three, to pay its latency once.
    received = exchange(torch.cat(parts, dim=2), group).flatten(0, 1)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in received.split([part.shape[2] for part in parts], dim=1))
    return q, k, v


def heads_to_tokens(attended: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Reverse `tokens_to_heads`: [1, N, heads / ranks, D] becomes [1, N / ranks, heads, D]. Collective over `group`."""
    received = exchange(attended[0].unflatten(0, (group.size(), -1)), group)
    return received.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def exchange(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All-to-all along the first dimension: x[i] goes to rank i, and result[i] comes from rank i. Differentiable."""
    exchanged = _Exchange.apply(x, group)
    assert isinstance(exchanged, Tensor)
    return exchanged


class _Exchange(torch.autograd.Function):
    """All parts have equal size, so the same exchange returns each part's gradient to the rank it came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_to_all(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(grads[0], ctx.group), None


def _all_to_all(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    sent = x.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received


def _by_rank(x: Tensor, ranks: int) -> Tensor:
    """Reshape [heads, n, D] to [ranks, n, heads per rank, D], repeating heads if there are fewer than ranks."""
    heads = x.shape[0]
    if heads < ranks:
        x = x.repeat_interleave(ranks // heads, dim=0)
    return x.unflatten(0, (ranks, -1)).transpose(1, 2)
