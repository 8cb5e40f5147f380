"""The export formats, under the names that the command uses."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """The format of an export."""

    HUGGINGFACE = "huggingface"
    """safetensors, tokenizer and configuration: what vLLM, SGLang and transformers load."""

    FP8 = "fp8"
    """The same with linear layers in FP8 (compressed-tensors), for GPUs with FP8 support."""

    GGUF_F16 = "gguf-f16"
    """One file for llama.cpp, not quantized."""

    GGUF_Q8_0 = "gguf-q8_0"
    """One file for llama.cpp, 8.5 bits a weight."""

    GGUF_Q4_K_M = "gguf-q4_k_m"
    """One file for llama.cpp, about 4.8 bits a weight."""

    @property
    def quantization(self) -> str | None:
        """llama.cpp's name of the number format; None if the format is not a GGUF."""
        return self.value.removeprefix("gguf-").upper() if self.value.startswith("gguf-") else None

    @property
    def most_kl(self) -> float:
        """Mean KL divergence from the source (nats) above which the conversion is broken; rounding causes far less."""
        return _MOST_KL[self]


_MOST_KL = {
    Format.HUGGINGFACE: 1e-2,
    Format.FP8: 0.1,
    Format.GGUF_F16: 1e-3,
    Format.GGUF_Q8_0: 2e-2,
    Format.GGUF_Q4_K_M: 0.5,
}
