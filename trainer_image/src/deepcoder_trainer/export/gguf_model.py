"""Writes a Qwen2, Qwen3 or Llama model as one GGUF file in F16, one tensor at a time.

Names come from the library's own map. For Llama, the rows of the query and key projections are reordered for
llama.cpp's rotation (adjacent pairs, where transformers uses halves); Qwen's need no reordering. One-dimensional
tensors stay in float32, as llama.cpp requires. Scaled positions (YaRN, Llama 3) are written as llama.cpp's metadata;
other kinds are refused. The descriptions of all tensors are written before the first tensor, so no tensor has to be
kept in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.export.errors import ExportFailed
from deepcoder_trainer.export.gguf_vocabulary import add_vocabulary
from deepcoder_trainer.export.tensors import Tensors

_ARCHITECTURES = {
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
}
_ROPE_FREQUENCIES = "rope_freqs.weight"


def write_gguf(tensors: Tensors, config: Mapping[str, Any], tokenizer: Path, path: Path, name: str) -> None:
    """Write `path`. Raises `BadConfig` for features that GGUF cannot express, `ExportFailed` for weights beyond F16."""
    architecture = _ARCHITECTURES[config["architectures"][0]]
    llama = architecture is gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    try:
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, config)
        add_vocabulary(writer, tokenizer, config["vocab_size"])
        frequencies = _add_positions(writer, config)
        order = []
        for source in tensors.names():
            target = names.get_name(source, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise ExportFailed(f"weight {source} has no name in a GGUF of {config['architectures'][0]}")
            order.append(source)
            shape = tensors.shape(source)
            dtype = np.dtype(np.float32 if len(shape) == 1 else np.float16)
            writer.add_tensor_info(target, shape, dtype, math.prod(shape) * dtype.itemsize)
        if frequencies is not None:
            writer.add_tensor_info(_ROPE_FREQUENCIES, frequencies.shape, frequencies.dtype, frequencies.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for source in order:
            value = tensors.get(source).to(torch.float32)
            writer.write_tensor_data(_array(_rotated(source, value, config) if llama else value, source))
        if frequencies is not None:
            writer.write_tensor_data(frequencies)
    finally:
        writer.close()


def _array(value: Tensor, name: str) -> np.ndarray[Any, Any]:
    if value.dim() == 1:
        return value.numpy()
    half = value.to(torch.float16)
    if not torch.isfinite(half).all():
        raise ExportFailed(f"weight {name} has values that F16 does not hold (over 65504, or no numbers)")
    return half.numpy()


def _rotated(name: str, value: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Return the rows of a query or key projection in the order of pairs; other weights unchanged."""
    part = name.rpartition(".")[0].rpartition(".")[2]
    heads = {"q_proj": config["num_attention_heads"], "k_proj": _key_value_heads(config)}.get(part)
    if heads is None:
        return value
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.transpose(1, 2).reshape(value.shape)


def _key_value_heads(config: Mapping[str, Any]) -> int:
    """Return the number of key-value heads; the number of query heads if config.json lacks it (the first Llamas)."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _add_shape(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(_key_value_heads(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)


def _add_positions(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> np.ndarray[Any, Any] | None:
    """Write how positions are rotated. For Llama 3's scaling, return the frequencies' divisors, which are a tensor."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_rope_freq_base(theta)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind == "llama3":
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        return _llama3_divisors(rope, theta, width)
    if kind != "yarn":
        raise BadConfig(
            f"the model's positions are scaled by {kind!r}, which is not converted: YaRN and Llama 3's are",
            field="--format",
        )
    factor = float(rope["factor"])
    usual = {"beta_fast": 32, "beta_slow": 1, "attention_factor": 0.1 * math.log(factor) + 1, "truncate": True}
    for name in ("beta_fast", "beta_slow", "attention_factor", "truncate", "mscale", "mscale_all_dim"):
        value = rope.get(name)
        if value is not None and (name not in usual or not math.isclose(value, usual[name], rel_tol=1e-6)):
            raise BadConfig(
                f"the model's YaRN has {name} {value}, which is not converted: YaRN with its usual settings is",
                field="--format",
            )
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    return None


def _llama3_divisors(rope: Mapping[str, Any], theta: float, width: int) -> np.ndarray[Any, Any]:
    """Return the divisors: the factor for long wavelengths, 1 for short ones, a smooth transition in between."""
    wave = 2 * math.pi * theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    turns = rope["original_max_position_embeddings"] / wave
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
