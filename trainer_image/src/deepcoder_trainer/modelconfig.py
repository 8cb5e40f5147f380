"""Reads a model's config.json and finds its weights, for sampler and learner.

Raises `BadConfig` for a model that cannot be used.

A stage may scale the model's rotary positions beyond the trained length; sampler and learner then override the same
entries of config.json. This module imports neither torch nor transformers, because the driver reads the config before
anything heavy is started.
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
"""Files that are copied unchanged from the run's starting model, as far as it has them."""


def model_files(directory: Path) -> dict[str, str]:
    """Return the digests of a model's files besides its weights, by file name: config, tokenizer, and others."""
    files = (directory / name for name in ("config.json", *COPIED))
    return {file.name: f"sha256:{file_sha256(file)}" for file in files if file.is_file()}


def read_model_config(directory: Path) -> dict[str, Any]:
    """Return the config.json of a folder in Hugging Face layout. Raises `BadConfig` if it is missing or unsupported."""
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


def weight_files(directory: Path) -> dict[str, Path]:
    """Map each weight's name to its file, for learners and samplers alike: a folder may hold other files of weights.

    Raises `BadConfig` if there are no usable safetensors files.
    """
    from safetensors import SafetensorError, safe_open

    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = {name: Path(file) for name, file in json.loads(index.read_bytes())["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadConfig(
                f"{index} is no index of weights ({error!r}): fetch the model again", field="model.uri"
            ) from error
        for file in dict.fromkeys(named.values()):
            if str(file) != file.name or not (directory / file).is_file():
                raise BadConfig(f"{index} names {file}, which is missing: put it there", field="model.uri")
        return {name: directory / file for name, file in named.items()}
    single = directory / "model.safetensors"
    if not single.is_file():
        raise BadConfig(
            f"{directory} has no model.safetensors: convert the model to safetensors (pickled weights are never read)",
            field="model.uri",
        )
    try:
        with safe_open(single, framework="np") as f:
            return dict.fromkeys(f.keys(), single)
    except SafetensorError as e:
        raise BadConfig(f"{single} is not a safetensors file: {e}", field="model.uri") from e


def rope_entries(config: Mapping[str, Any], rope: RopeScaling | None) -> dict[str, Any]:
    """Return the entries of config.json that a stage's `rope` overrides. Raises `BadConfig`."""
    try:
        return model_shape.rope_entries(config, rope)
    except ValueError as error:
        raise BadConfig(str(error), field="stage.rope.originalPositions") from None
