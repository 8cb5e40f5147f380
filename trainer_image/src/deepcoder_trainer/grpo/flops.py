"""What a sequence costs to train on, from the model's shape alone.

One formula for packing, which balances ranks by it, and for reports, which divide it by time: forward and backward
pass of every matrix (6 FLOP a parameter and token), causal attention counted as the half that is not masked
(6 * layers * heads * head_dim * tokens^2), the head where a token is predicted. Recomputed activations do not count:
they are a cost of the machine, not of the model. Imports no torch: the driver packs without it.
"""

from __future__ import annotations

from deepcoder_contracts.model_shape import ModelShape


def sequence_flops(shape: ModelShape, tokens: int, predicted: int | None = None) -> float:
    """FLOP of a forward and backward pass over a sequence; the head is paid for `predicted` tokens (default: all)."""
    matrices = 6.0 * shape.layers * shape.layer_matrices * tokens
    attention = 6.0 * shape.layers * shape.heads * shape.head_dim * tokens**2
    return matrices + attention + 6.0 * shape.head_matrix * (tokens if predicted is None else predicted)
