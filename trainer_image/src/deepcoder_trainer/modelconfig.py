"""Reads a model's config.json, for sampler and learner alike. Raises `BadConfig` for a model that cannot be used.

A stage may change the rotary positions in it (scaled beyond the trained length). Both use the same entries for this.

It imports neither torch nor transformers, because the driver reads the config before anything heavy is started.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepcoder_contracts import model_shape
from deepcoder_contracts.rope import RopeScaling
from deepcoder_contracts.supported import model_refusals
from deepcoder_trainer.checkpoint.storage import file_sha256
from deepcoder_trainer.errors import BadConfig

COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
)
"""What is taken over as it is from the model that a run began with, where it has it."""


def model_files(directory: Path) -> dict[str, str]:
    """Digests of a model's configuration, tokenizer and what else goes with its weights, by file name."""
    files = (directory / name for name in ("config.json", *COPIED))
    return {file.name: f"sha256:{file_sha256(file)}" for file in files if file.is_file()}


def read_model_config(directory: Path) -> dict[str, Any]:
    """config.json of a folder in Hugging Face layout."""
    if (directory / "adapter_config.json").exists():
        raise BadConfig(
            f"{directory} holds a LoRA adapter: merge it into its base model first (LoRA is not trained here)",
            field="model.uri",
        )
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except FileNotFoundError:
        raise BadConfig(
            f"{directory} has no config.json: a model in Hugging Face layout is needed", field="model.uri"
        ) from None
    except ValueError as error:
        raise BadConfig(
            f"{directory}/config.json is not JSON ({error}): fetch the model again", field="model.uri"
        ) from error
    for refusal in model_refusals(config):
        raise BadConfig(f"{directory}: {refusal.message}", field=refusal.field)
    return dict(config)


def rope_entries(config: Mapping[str, Any], rope: RopeScaling | None) -> dict[str, Any]:
    """Entries that a stage's `rope` puts in the place of config.json's; raises `BadConfig`."""
    try:
        return model_shape.rope_entries(config, rope)
    except ValueError as error:
        raise BadConfig(str(error), field="stage.rope.originalPositions") from None
