"""What a plan must know of a model: its parameters, and how many positions it has.

Sizes come from a config.json. Those of the models that the examples start from are written down here, so that they
can be planned for without fetching 30 GB; any other model's config.json is given by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.grpo.flops import ModelShape
from deepcoder_trainer.modelconfig import read_model_config

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
"""The sizes in the config.json of hub repositories."""

_STRETCHED = ("linear", "dynamic")
"""Kinds of rotary scaling that reach `factor` times max_position_embeddings; others have it in that number already."""


def model_config(uri: str, given: Path | None) -> Mapping[str, Any]:
    """config.json of `model.uri`: the one given by hand, a local model's own, or a known one."""
    if given is not None:
        return _read(given)
    if uri in KNOWN:
        return KNOWN[uri]
    path = Path(uri.removeprefix("file://"))
    if uri.startswith(("/", "file://")) and path.is_dir():
        return read_model_config(path)
    raise BadConfig(
        f"model.uri is {uri}, whose sizes are not known here: give its config.json with --model-config FILE",
        field="model.uri",
    )


def _read(path: Path) -> Mapping[str, Any]:
    if path.is_dir():
        return read_model_config(path)
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadConfig(f"--model-config {path} cannot be read: {error}", field="--model-config") from error
    if not isinstance(config, dict):
        raise BadConfig(f"--model-config {path} holds no object: give a model's config.json", field="--model-config")
    return config


def model_shape(config: Mapping[str, Any]) -> ModelShape:
    """Its shape; raises `BadConfig` for a config.json without sizes."""
    try:
        return ModelShape.of(config)
    except ValueError as error:
        raise BadConfig(f"model.uri: {error}: use a model with a complete config.json", field="model.uri") from error


def parameters(shape: ModelShape) -> int:
    """Parameters of the model; norms and biases are thousandths and left out."""
    return shape.layers * shape.layer_matrices + root_matrices(shape)


def root_matrices(shape: ModelShape) -> int:
    """Parameters of embedding and head, which are gathered together."""
    return shape.head_matrix * (1 if shape.tied else 2)


def positions(config: Mapping[str, Any]) -> float:
    """Longest sequence that the model's positions reach, as vLLM reckons it; infinite if config.json does not say."""
    reached = float(config.get("max_position_embeddings") or math.inf)
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type")) in _STRETCHED:
        original = float(scaling.get("original_max_position_embeddings") or reached)
        reached = original * float(scaling.get("factor") or 1)
    return max(reached, float(config.get("model_max_length") or 0))
