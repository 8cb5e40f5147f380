"""Reading a model's config.json, for sampler and learner alike; raises `BadConfig` for a model that cannot be used.

What a stage changes in it, rotary positions scaled past the trained length, is one set of entries for both too.

Imports neither torch nor transformers: the driver reads it before anything heavy is started.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepcoder_contracts.stage import RopeScaling, RopeType
from deepcoder_contracts.supported import model_refusals
from deepcoder_trainer.errors import BadConfig


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
    """Entries that a stage's `rope` puts in the place of config.json's; none without it.

    Both kinds reach the original positions times the factor. transformers and vLLM read the same names; of Dynamic vLLM
    takes the base for the longest length, at every length.
    """
    if rope is None:
        return {}
    own = config.get("rope_parameters") or config.get("rope_scaling") or {}
    original = rope.original_positions or own.get("original_max_position_embeddings")
    original = original or config.get("max_position_embeddings")
    if not original:
        raise BadConfig(
            "the model's config.json does not say max_position_embeddings: say stage.rope.originalPositions",
            field="stage.rope.originalPositions",
        )
    parameters: dict[str, Any] = {
        "rope_type": rope.type.value.lower(),
        "factor": rope.factor,
        "original_max_position_embeddings": int(original),
    }
    if rope.type is RopeType.DYNAMIC:
        # vLLM's name for it; without, it takes the positions reached for those trained, and scales nothing.
        parameters["max_trained_positions"] = int(original)
    if theta := own.get("rope_theta") or config.get("rope_theta"):
        parameters["rope_theta"] = theta
    return {"rope_parameters": parameters, "max_position_embeddings": int(original * rope.factor)}
