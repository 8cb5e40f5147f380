"""Attention of a row of tokens that several ranks share (Ulysses: Jacobs et al. 2023, arXiv 2309.14509).

Each rank of a group holds an equal slice of the row's tokens, for all that works token by token. Attention needs the
whole row: one all-to-all turns every head of some tokens into every token of some heads, each rank attends for its
heads, and a second all-to-all turns the result back. Head h goes to rank h * ranks / heads; where there are fewer KV
heads than ranks each is sent to all ranks whose query heads it serves, and their gradients add up. All ranks of the
group must call this for the same row, forward and backward, or they wait for each other until the collective's
deadline. The heads must divide (`sp_refusals` of `deepcoder_contracts.model_shape`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def tokens_to_heads(
    query: Tensor, key: Tensor, value: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """[1, heads, N / ranks, D] each, of this rank's tokens, to [1, heads / ranks, N, D] of this rank's heads."""
    ranks = group.size()
    parts = [_by_rank(x[0], ranks) for x in (query, key, value)]
    # One exchange for all three: its latency is paid once.
    received = exchange(torch.cat(parts, dim=2), group).flatten(0, 1)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in received.split([part.shape[2] for part in parts], dim=1))
    return q, k, v


def heads_to_tokens(attended: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[1, N, heads / ranks, D] of this rank's heads to [1, N / ranks, heads, D] of this rank's tokens."""
    received = exchange(attended[0].unflatten(0, (group.size(), -1)), group)
    return received.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def exchange(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Part i of the first dimension goes to rank i; what comes from rank i becomes part i. Differentiable."""
    exchanged = _Exchange.apply(x, group)
    assert isinstance(exchanged, Tensor)
    return exchanged


class _Exchange(torch.autograd.Function):
    """Parts of equal size: the gradient goes back the way its part came, by the same exchange."""

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
    """[heads, n, D] to [ranks, n, heads for each rank, D]."""
    heads = x.shape[0]
    if heads < ranks:
        x = x.repeat_interleave(ranks // heads, dim=0)
    return x.unflatten(0, (ranks, -1)).transpose(1, 2)
