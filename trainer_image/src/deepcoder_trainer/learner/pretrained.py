"""The Hugging Face layout that vLLM serves: safetensors shards, config and the tokenizer's files.

Weights are streamed, one shard at a time. All other files of the starting model (tokenizer, chat template, generation
config) are copied unchanged. A model without a generation config gets that of the published model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from deepcoder_contracts.learner_memory import SHARD_BYTES
from deepcoder_contracts.recipe import Precision
from deepcoder_trainer.modelconfig import COPIED

_SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
"""Sampling settings of the published model's evaluation."""

_GENERATION = "generation_config.json"


def write_pretrained(
    weights: Iterable[tuple[str, Tensor]],
    source: Path,
    directory: Path,
    precision: Precision,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write the model below `directory`. Return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    files: list[Path] = []
    total = 0
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        path = directory / f"part-{len(shards):05d}.safetensors"
        save_file(pending, path, metadata={"format": "pt"})
        shards.append(list(pending))
        files.append(path)

    for name, value in weights:
        if pending and sum(t.nbytes for t in pending.values()) + value.nbytes > shard_bytes:
            flush()
            pending = {}
        pending[name] = value.contiguous()
        total += value.nbytes
    if pending:
        flush()
    files = _final_names(directory, files, shards, total)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = precision.dtype
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    files.append(directory / "config.json")
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
            files.append(directory / name)
    if not (directory / _GENERATION).exists():
        tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
        (directory / _GENERATION).write_text(json.dumps(tokens | _SAMPLING, indent=2, sort_keys=True) + "\n")
        files.append(directory / _GENERATION)
    return files


def _final_names(directory: Path, parts: list[Path], shards: list[list[str]], total: int) -> list[Path]:
    """Rename the parts to `model.safetensors`, or to `model-00001-of-00003.safetensors` … with an index."""
    if len(parts) == 1:
        return [parts[0].rename(directory / "model.safetensors")]
    files: list[Path] = []
    weight_map: dict[str, str] = {}
    for number, (part, names) in enumerate(zip(parts, shards, strict=True), start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        files.append(part.rename(directory / file))
        weight_map |= dict.fromkeys(names, file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
    return [*files, index]
