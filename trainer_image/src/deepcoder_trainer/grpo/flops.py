"""What a sequence costs to train on, from the model's shape alone.

One formula for packing, which balances ranks by it, and for reports, which divide it by time: forward and backward
pass of every matrix (6 FLOP a parameter and token), causal attention counted as the half that is not masked
(6 * layers * heads * head_dim * tokens^2), the head where a token is predicted. Recomputed activations do not count:
they are a cost of the machine, not of the model. Imports no torch: the driver packs without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from deepcoder_contracts.supported import Refusal


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a dense decoder, under the names that config.json gives them."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """Whether the head is the embedding."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From config.json, or a model's `config.to_dict()`; raises ValueError for a size that is not there."""
        needed = ("num_attention_heads", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
        if missing := [name for name in needed if not config.get(name)]:
            raise ValueError(f"config.json does not say {', '.join(missing)}")
        heads = int(config["num_attention_heads"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            intermediate=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer that tokens are multiplied with; norms and biases are thousandths and left out."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def head_matrix(self) -> int:
        """Parameters of the head, which are the embedding's own where it is tied."""
        return self.hidden * self.vocabulary


def sequence_flops(shape: ModelShape, tokens: int, predicted: int | None = None) -> float:
    """FLOP of a forward and backward pass over a sequence; the head is paid for `predicted` tokens (default: all)."""
    matrices = 6.0 * shape.layers * shape.layer_matrices * tokens
    attention = 6.0 * shape.layers * shape.heads * shape.head_dim * tokens**2
    return matrices + attention + 6.0 * shape.head_matrix * (tokens if predicted is None else predicted)


def sp_refusals(shape: ModelShape, sp: int) -> Iterator[Refusal]:
    """Why `sp` ranks cannot share the model's attention heads, if they cannot (see `ulysses`)."""
    possible = [n for n in range(1, 9) if not shape.heads % n and not (shape.kv_heads % n and n % shape.kv_heads)]
    if sp not in possible:
        yield Refusal(
            "recipe.sequenceParallel",
            f"recipe.sequenceParallel is {sp}, but the model has {shape.heads} attention heads and {shape.kv_heads} "
            f"key-value heads, which divide over {', '.join(map(str, possible))} ranks: set it to one of these",
        )
