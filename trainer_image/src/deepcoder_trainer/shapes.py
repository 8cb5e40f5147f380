"""Finds the config.json and the shape of the model of a plan or an attempt. Raises `BadConfig` for an unusable one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepcoder_contracts.model_shape import KNOWN, ModelShape
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.modelconfig import read_model_config


def model_config(uri: str, given: Path | None) -> Mapping[str, Any]:
    """Return the config.json of `model.uri`: the `given` one, that of a local model, or that of a known model."""
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
    """Return the model's shape. Raises `BadConfig` for a config.json without sizes."""
    try:
        return ModelShape.of(config)
    except ValueError as error:
        raise BadConfig(f"model.uri: {error}: use a model with a complete config.json", field="model.uri") from error
