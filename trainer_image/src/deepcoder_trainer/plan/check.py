"""Refuses settings that cannot work before anything starts: lengths, and numbers that must divide each other.

An attempt calls `check` once it has read the model's config.json. It raises `BadConfig`, so no GPU is requested and
nothing is retried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepcoder_contracts.fit import IN_A_RUN, Names, length_refusals, rank_refusals, tp_refusals
from deepcoder_contracts.stage import StageConfig, StageType
from deepcoder_contracts.supported import quantized_refusals
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.modelconfig import rope_entries
from deepcoder_trainer.sampler.settings import engine_settings
from deepcoder_trainer.shapes import model_shape


def check(config: StageConfig, model_config: Mapping[str, Any], names: Names = IN_A_RUN) -> None:
    """Raise `BadConfig` that lists all settings that cannot work in an attempt of this stage.

    A command gives the `names` of its options.
    """
    stage, shape = config.stage, model_shape(model_config)
    where = f"stages[{stage.name}]"
    longest = engine_settings(config, model_config).max_model_len
    context = longest - config.recipe.max_prompt_tokens
    field = names.context_tokens
    if field is None:
        field = f"{where}.contextTokens" if context == stage.context_tokens else f"{where}.evaluate.contextTokens"
    scaled = {**model_config, **rope_entries(model_config, stage.rope)}
    found = [
        *quantized_refusals(model_config, config.model.uri),
        *length_refusals(scaled, config.recipe, context, field, names),
        *tp_refusals(shape, config.recipe, names),
    ]
    if stage.type is StageType.TRAIN:
        found += rank_refusals(shape, config.recipe, stage.resources.learners)
    if found:
        raise BadConfig("\n".join(refusal.message for refusal in found), field=found[0].field)
