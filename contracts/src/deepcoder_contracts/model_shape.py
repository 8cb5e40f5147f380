"""A model's sizes and positions, from its config.json in Hugging Face layout.

The sizes of the models in the examples are listed here, so that a plan does not have to fetch 30 GB. For any other
model the user passes config.json. A config.json that lacks a size raises ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from deepcoder_contracts.rope import RopeScaling, RopeType
from deepcoder_contracts.supported import Refusal

_QWEN_14B: Mapping[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "num_hidden_layers": 48,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
}
_QWEN_1_5B: Mapping[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "num_hidden_layers": 28,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
}
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "hf://deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": _QWEN_14B,
    "hf://agentica-org/DeepCoder-14B-Preview": _QWEN_14B,
    "hf://deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _QWEN_1_5B,
    "hf://agentica-org/DeepScaleR-1.5B-Preview": _QWEN_1_5B,
    "hf://agentica-org/DeepCoder-1.5B-Preview": _QWEN_1_5B,
}
"""Sizes from the config.json of hub repositories."""

_STRETCHED = ("linear", "dynamic")
"""Kinds of rotary scaling that reach `factor` times max_position_embeddings. For others that number includes it."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a dense decoder, as in config.json."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """Whether the head shares the embedding's weights."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json, or a model's `config.to_dict()`. Raises ValueError if a size is missing."""
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
        """Parameters in the matrices of one layer. Norms and biases, a few thousandths, are left out."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def head_matrix(self) -> int:
        """Parameters of the head. In a tied model they are the embedding's."""
        return self.hidden * self.vocabulary


def parameters(shape: ModelShape) -> int:
    """Return the number of parameters of the model. Norms and biases, a few thousandths, are left out."""
    return shape.layers * shape.layer_matrices + root_matrices(shape)


def root_matrices(shape: ModelShape) -> int:
    """Return the number of parameters of embedding and head, which are gathered together."""
    return shape.head_matrix * (1 if shape.tied else 2)


def positions(config: Mapping[str, Any]) -> float:
    """Return the longest sequence that the model's positions allow, computed as in vLLM. Infinite if config.json does
    not say."""
    reached = float(config.get("max_position_embeddings") or math.inf)
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type")) in _STRETCHED:
        original = float(scaling.get("original_max_position_embeddings") or reached)
        reached = original * float(scaling.get("factor") or 1)
    return max(reached, float(config.get("model_max_length") or 0))


def kv_bytes_per_token(model_config: Mapping[str, Any], dtype: str) -> int:
    """Return the key and value bytes of one token over all layers, from a Hugging Face config.json."""
    heads = int(model_config["num_attention_heads"])
    kv_heads = int(model_config.get("num_key_value_heads") or heads)
    head_dim = int(model_config.get("head_dim") or int(model_config["hidden_size"]) // heads)
    return 2 * int(model_config["num_hidden_layers"]) * kv_heads * head_dim * (4 if dtype == "float32" else 2)


def rope_entries(config: Mapping[str, Any], rope: RopeScaling | None) -> dict[str, Any]:
    """Return the entries of config.json that a stage's `rope` replaces. Empty if `rope` is None.

    Both kinds extend the original positions by the factor. transformers and vLLM read the same names. For Dynamic, vLLM
    uses the base of the longest length at every length. Raises ValueError if the original positions are unknown.
    """
    if rope is None:
        return {}
    own = config.get("rope_parameters") or config.get("rope_scaling") or {}
    original = rope.original_positions or own.get("original_max_position_embeddings")
    original = original or config.get("max_position_embeddings")
    if not original:
        raise ValueError("the model's config.json has no max_position_embeddings: set stage.rope.originalPositions")
    parameters: dict[str, Any] = {
        "rope_type": rope.type.value.lower(),
        "factor": rope.factor,
        "original_max_position_embeddings": int(original),
    }
    if rope.type is RopeType.DYNAMIC:
        # Only vLLM reads this. Without it, vLLM takes the scaled positions for the trained ones and scales nothing.
        parameters["max_trained_positions"] = int(original)
    if theta := own.get("rope_theta") or config.get("rope_theta"):
        parameters["rope_theta"] = theta
    return {"rope_parameters": parameters, "max_position_embeddings": int(original * rope.factor)}


def sp_refusals(shape: ModelShape, sp: int) -> Iterator[Refusal]:
    """Yield a refusal if `sp` ranks cannot share the model's attention heads (see `ulysses`)."""
    possible = [n for n in range(1, 9) if not shape.heads % n and not (shape.kv_heads % n and n % shape.kv_heads)]
    if sp not in possible:
        yield Refusal(
            "recipe.sequenceParallel",
            f"recipe.sequenceParallel is {sp}, but the model has {shape.heads} attention heads and {shape.kv_heads} "
            f"key-value heads, which divide over {', '.join(map(str, possible))} ranks: set it to one of these",
        )
