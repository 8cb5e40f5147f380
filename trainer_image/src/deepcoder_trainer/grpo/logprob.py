"""Computes log-probability and entropy of given tokens from hidden states without materializing all logits.

At 32,768 tokens and a vocabulary of 152,064, the logits take 19 GiB in float32, and softmax and gradient as much again
each. Here only one float32 tile exists at a time: `rows` positions by `block` vocabulary entries. The forward pass
keeps a running maximum and sum per position (online softmax). The backward pass recomputes each tile from the hidden
states and the stored log-sum-exp of each position. Its outer loop is over the vocabulary, so the float32 accumulator of
the head's gradient holds one vocabulary block, which is rounded to the head's dtype once.

On CUDA, tensor cores multiply in half precision: a tile of the logits' gradient is rounded to it before the matrix
product, as in any mixed-precision backward pass, and all sums are in float32. On CPUs nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ROWS = 4096
"""Positions in a tile."""

BLOCK = 16_384
"""Vocabulary entries in a tile."""

_LOWEST = -1e30
"""Below any logit, but finite: -inf - (-inf) would be NaN."""


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    entropy: bool = True,
    rows: int = ROWS,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor | None]:
    """Return log softmax(hidden @ weight.T / temperature)[targets] and, with `entropy`, the entropy in nats.

    hidden: [R, H]; weight: [V, H]; targets: [R] integers. Both results are [R] in float32 (float64 for float64 inputs)
    and differentiable with respect to hidden and weight. `rows` and `block` are the tile's size.
    """
    logprob, nats = _LinearLogprob.apply(hidden, weight, targets, temperature, entropy, rows, block)
    return logprob, nats


class _LinearLogprob(torch.autograd.Function):
    """The gradients, with z = logits / temperature, p = softmax(z): d logp_t / dz = 1[t] - p, dH / dz = -p (log p + H).

    1[t] is the one-hot vector of the target, H the entropy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        with_entropy: bool,
        rows: int,
        block: int,
    ) -> tuple[Tensor, Tensor | None]:
        wide = torch.float64 if hidden.dtype is torch.float64 else torch.float32
        count = hidden.shape[0]
        logprob, log_sum = (torch.empty(count, dtype=wide, device=hidden.device) for _ in range(2))
        entropy = torch.empty_like(logprob) if with_entropy else None
        for r in _slices(count, rows):
            h = hidden[r]
            top = torch.full_like(log_sum[r], _LOWEST)
            total, moment, chosen = (torch.zeros_like(top) for _ in range(3))
            for v in _slices(weight.shape[0], block):
                z = _matmul(h, weight[v].t(), wide).div_(temperature)
                place, inside = _within(targets[r], v)
                chosen = torch.where(inside, z.gather(-1, place.unsqueeze(-1)).squeeze(-1), chosen)
                higher = torch.maximum(top, z.amax(-1))
                shrink = (top - higher).exp_()
                z.sub_(higher.unsqueeze(-1))
                if entropy is None:
                    e = z.exp_()
                else:
                    # sum of e^(z - top) (z - top), rescaled to the new maximum
                    e = z.exp()
                    moment = (moment + total * (top - higher)) * shrink + z.mul_(e).sum(-1)
                total = total * shrink + e.sum(-1)
                top = higher
            log_sum[r] = top + total.log()
            logprob[r] = (chosen - top) - total.log()  # not chosen - log_sum, whose rounding grows with the logits
            if entropy is not None:
                entropy[r] = total.log() - moment / total
        ctx.save_for_backward(hidden, weight, targets, log_sum, entropy)
        ctx.temperature, ctx.rows, ctx.block = temperature, rows, block
        ctx.set_materialize_grads(False)
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_logprob, grad_entropy = grads
        hidden, weight, targets, log_sum, entropy = ctx.saved_tensors
        wide = log_sum.dtype
        grad_hidden = torch.zeros(hidden.shape, dtype=wide, device=hidden.device)
        grad_weight = torch.empty_like(weight)
        for v in _slices(weight.shape[0], ctx.block):
            head = weight[v]
            total = torch.zeros(head.shape, dtype=wide, device=head.device)
            for r in _slices(hidden.shape[0], ctx.rows):
                h, log_z = hidden[r], log_sum[r].unsqueeze(-1)
                up = None if grad_logprob is None else grad_logprob[r].unsqueeze(-1)
                g = _matmul(h, head.t(), wide).div_(ctx.temperature).sub_(log_z)
                if grad_entropy is None:
                    g.exp_().mul_(torch.zeros_like(log_z) if up is None else -up)
                else:
                    p = g.exp()
                    g.add_(entropy[r].unsqueeze(-1)).mul_(-grad_entropy[r].unsqueeze(-1))
                    if up is not None:
                        g.sub_(up)
                    g.mul_(p)
                    del p
                if up is not None:
                    place, inside = _within(targets[r], v)
                    g.scatter_add_(-1, place.unsqueeze(-1), torch.where(inside.unsqueeze(-1), up, 0))
                g.div_(ctx.temperature)
                if head.is_cuda:
                    g = g.to(head.dtype)
                grad_hidden[r] += _matmul(g, head, wide)
                total += _matmul(g.t(), h, wide)
            grad_weight[v] = total
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None, None, None


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _within(targets: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Return the index of each target [R] within a vocabulary block (0 if outside), and whether it is inside."""
    inside = (targets >= part.start) & (targets < part.stop)
    return torch.where(inside, targets - part.start, 0), inside


def _matmul(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """Return a @ b in dtype `wide`: CUDA accumulates half precision in float32; on CPUs the operands are cast first."""
    if a.dtype is wide and b.dtype is wide:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=wide)
    return a.to(wide) @ b.to(wide)
