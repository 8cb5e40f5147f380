"""Writes the Hugging Face layout: sharded safetensors with an index, tokenizer, generation settings and config.json.

Weights stream through `write_pretrained`, which the learners' exports use too, so one shard is in memory, never the
whole model. This module adds two things to config.json: scaled positions, in both spellings, because servers differ in
which they read, and the quantization.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deepcoder_contracts.recipe import Precision
from deepcoder_contracts.rope import RopeScaling
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.learner.pretrained import write_pretrained
from deepcoder_trainer.modelconfig import rope_entries


def write(
    weights: Iterable[tuple[str, Tensor]],
    pretrained: Path,
    directory: Path,
    precision: Precision,
    entries: Mapping[str, Any],
    shard_bytes: int,
) -> None:
    """Write the model below `directory`; `entries` replace those of config.json."""
    write_pretrained(weights, pretrained, directory, precision, shard_bytes)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(entries), indent=2, sort_keys=True) + "\n")


def positions(config: Mapping[str, Any], tokens: int | None, original: int | None) -> dict[str, Any]:
    """Return config.json entries that make positions reach `tokens` by YaRN. Raises `BadConfig` if they do already."""
    if tokens is None:
        return {}
    own = config.get("rope_parameters") or config.get("rope_scaling") or {}
    trained = original or own.get("original_max_position_embeddings") or config.get("max_position_embeddings")
    if not trained:
        raise BadConfig("the model's config.json does not say its positions: set --rope-original", field="--rope")
    if tokens <= trained:
        raise BadConfig(
            f"--rope {tokens} is no more than the {trained} positions that the model has: leave it out, or give with "
            "--rope-original the number that it was really trained for",
            field="--rope",
        )
    if tokens > 64 * trained:
        raise BadConfig(f"--rope {tokens} is more than 64 times {trained} positions: scale less", field="--rope")
    scaling = RopeScaling.model_validate(
        {"type": "Yarn", "factor": tokens / trained, "original_positions": int(trained)}
    )
    entries = rope_entries(config, scaling)
    parameters = dict(entries["rope_parameters"])
    theta = parameters.pop("rope_theta", None)
    old = {"rope_scaling": parameters | {"type": parameters["rope_type"]}}
    return entries | old | {"max_position_embeddings": tokens} | ({} if theta is None else {"rope_theta": theta})
