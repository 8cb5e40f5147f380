"""Computes the training cost of a sequence in FLOPs from the model's shape.

Packing balances ranks by this cost, and the meter divides it by time (MFU). It counts the forward and backward pass of
every matrix (6 FLOPs per parameter and token), the unmasked half of causal attention
(6 * layers * heads * head_dim * tokens^2), and the head at each position that predicts a token. Recomputed activations
do not count, as is usual for MFU. This module does not import torch, because the driver packs without it.
"""

from __future__ import annotations

from deepcoder_contracts.model_shape import ModelShape


def sequence_flops(shape: ModelShape, tokens: int, predicted: int | None = None) -> float:
    """Return the FLOPs of a forward and backward pass; the head runs for `predicted` of the `tokens` (default: all)."""
    matrices = 6.0 * shape.layers * shape.layer_matrices * tokens
    attention = 6.0 * shape.layers * shape.heads * shape.head_dim * tokens**2
    return matrices + attention + 6.0 * shape.head_matrix * (tokens if predicted is None else predicted)
