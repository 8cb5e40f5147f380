"""FP8 weights in the compressed-tensors layout, which vLLM loads on GPUs with FP8 support (Ada, Hopper and later).

Each output channel of a linear layer has its own scale: its largest magnitude divided by the largest FP8 value (E4M3:
448). Activations are quantized dynamically with a scale per token, which needs no calibration data. Embedding, head and
norms are not quantized. One tensor is in memory at a time. `linear` computes what vLLM does with activations, so that
the difference in the card is the one of the served model, except for the order in which a kernel adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcoder_trainer.export.tensors import SCALE, Tensors

LARGEST = torch.finfo(torch.float8_e4m3fn).max
_LINEAR = ("_proj.weight",)

QUANTIZATION_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "global_compression_ratio": None,
    "kv_cache_scheme": None,
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "float",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
                "observer": "minmax",
            },
            "input_activations": {
                "num_bits": 8,
                "type": "float",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
                "observer": None,
            },
            "output_activations": None,
        }
    },
}
"""The `quantization_config` of config.json."""


def quantized(tensors: Tensors, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights: those of linear layers in FP8, each followed by its scales; the others in `dtype`."""
    for name in tensors.names():
        value = tensors.get(name)
        if name.endswith(_LINEAR):
            values, scales = quantize(value.to(torch.float32))
            yield name, values
            yield name + SCALE, scales
        else:
            yield name, value.to(dtype)


def quantize(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows in FP8, and the scale of each: [rows, 1]."""
    scale = (value.abs().amax(dim=-1, keepdim=True) / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (value / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def linear(module: nn.Linear, value: Tensor) -> Tensor:
    """Apply a linear layer to activations that are quantized per token."""
    rounded, scale = quantize(value)
    return functional.linear(rounded.to(value.dtype) * scale, module.weight, module.bias)
