"""Log-probability and entropy of chosen tokens from hidden states, without ever holding all logits.

At 32,768 tokens and a vocabulary of 152,064 the logits alone are 19 GiB in float32, and softmax and gradient as much
again each. Here the head is applied to a chunk of positions at a time, in float32, and the backward pass computes
each chunk's logits once more from what the forward pass kept: hidden states and one log-sum-exp a position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_TOKENS = 1024
"""Positions whose logits exist at once."""


def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk_tokens: int = CHUNK_TOKENS
) -> tuple[Tensor, Tensor]:
    """log softmax(hidden @ weight.T / temperature)[targets], and the distribution's entropy in nats.

    hidden: [R, H]; weight: [V, H]; targets: [R] integers. Returns ([R], [R]) in float32 (float64 for float64
    inputs). Both are differentiable in hidden and weight.
    """
    logprob, entropy = _LinearLogprob.apply(hidden, weight, targets, temperature, chunk_tokens)
    return logprob, entropy


class _LinearLogprob(torch.autograd.Function):
    """With z = logits / temperature, p = softmax(z): d logp_t / dz = 1[t] - p, dH / dz = -p (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if hidden.dtype is torch.float64 else torch.float32
        count = hidden.shape[0]
        logprob = torch.empty(count, dtype=wide, device=hidden.device)
        entropy = torch.empty_like(logprob)
        log_sum = torch.empty_like(logprob)
        head = _head(weight, wide)
        for start in range(0, count, chunk_tokens):
            rows = slice(start, min(start + chunk_tokens, count))
            logits = _matmul(hidden[rows], head.t(), wide).div_(temperature)
            log_sum[rows] = torch.logsumexp(logits, -1)
            log_p = logits.sub_(log_sum[rows, None])
            logprob[rows] = log_p.gather(-1, targets[rows, None]).squeeze(-1)
            entropy[rows] = -(log_p.exp().mul_(log_p)).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, log_sum, entropy)
        ctx.temperature, ctx.chunk_tokens, ctx.wide = temperature, chunk_tokens, wide
        ctx.set_materialize_grads(False)
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_logprob, grad_entropy = grads
        hidden, weight, targets, log_sum, entropy = ctx.saved_tensors
        wide = ctx.wide
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        head = _head(weight, wide)
        for start in range(0, hidden.shape[0], ctx.chunk_tokens):
            rows = slice(start, min(start + ctx.chunk_tokens, hidden.shape[0]))
            log_p = _matmul(hidden[rows], head.t(), wide).div_(ctx.temperature).sub_(log_sum[rows, None])
            p = log_p.exp()
            if grad_entropy is not None:
                g = log_p.add_(entropy[rows, None]).mul_(p).mul_(-grad_entropy[rows, None])
                if grad_logprob is not None:
                    g.addcmul_(p, grad_logprob[rows, None], value=-1)
            elif grad_logprob is not None:
                g = p.mul_(-grad_logprob[rows, None])
            else:
                break
            if grad_logprob is not None:
                g.scatter_add_(-1, targets[rows, None], grad_logprob[rows, None])
            g = g.div_(ctx.temperature).to(head.dtype)
            grad_hidden[rows] = _matmul(g, head, wide).to(hidden.dtype)
            _accumulate(grad_weight, g.t(), hidden[rows])
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def _head(weight: Tensor, wide: torch.dtype) -> Tensor:
    """CUDA multiplies bfloat16 with float32 results; elsewhere the head is widened, or logits would be rounded."""
    return weight if weight.is_cuda else weight.to(wide)


def _matmul(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """a @ b with a result in `wide`, whatever the operands' precision."""
    if a.dtype is wide and b.dtype is wide:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=wide)
    return a.to(wide) @ b.to(wide)


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in place, in total's precision."""
    if a.dtype is total.dtype and b.dtype is total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
