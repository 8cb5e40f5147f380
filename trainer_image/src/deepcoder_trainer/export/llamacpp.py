"""llama.cpp through llama-cpp-python: quantizer, tokenizer and logits. Only this module imports it.

It is an optional dependency (`pip install 'deepcoder-trainer[gguf]'`), because it is compiled from source, which takes
minutes. An export as GGUF is complete only once llama.cpp has loaded it, so all GGUF formats need it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcoder_contracts.cpus import cpu_limit
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.export.errors import ExportFailed


def library() -> Any:
    """Return the module. Raises `BadConfig` if it is not installed."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as for torch's threads (`cli`)
    try:
        import llama_cpp
    except ImportError as error:
        raise BadConfig(
            "GGUF needs llama-cpp-python, which quantizes it and tries it: pip install 'deepcoder-trainer[gguf]' "
            f"(compiled from source, a C++ compiler and minutes; {error})",
            field="--format",
        ) from None
    return llama_cpp


def quantize(source: Path, target: Path, quantization: str) -> None:
    """Write `source`, a GGUF in F16, in another number format (`Q8_0`, `Q4_K_M`), a tensor at a time."""
    llama_cpp = library()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quantization}")
    settings.nthread = cpu_limit()
    status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(settings))
    if status != 0:
        raise ExportFailed(f"llama.cpp could not quantize {source.name} to {quantization} (status {status})")


class GGUFModel:
    """A GGUF that llama.cpp has loaded."""

    def __init__(self, path: Path, longest: int) -> None:
        """Raises `ExportFailed` if llama.cpp refuses the file."""
        try:
            self._model = library().Llama(
                str(path), n_ctx=longest, n_batch=longest, logits_all=True, n_gpu_layers=0, verbose=False
            )
        except ValueError as error:
            raise ExportFailed(f"llama.cpp does not load {path.name}: {error}") from error

    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a text, with special tokens recognised."""
        return list(self._model.tokenize(text.encode(), add_bos=False, special=True))

    def logits(self, prompt: list[int]) -> Tensor:
        """Return the logits of a prompt: [tokens, vocabulary]."""
        self._model.reset()
        self._model.eval(prompt)
        return torch.from_numpy(np.array(self._model.scores[: len(prompt)], np.float32))

    def close(self) -> None:
        """Free its memory."""
        self._model.close()
