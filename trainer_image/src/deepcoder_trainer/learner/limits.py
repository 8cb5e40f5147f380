"""What the learner does not do (yet), said before anything is started or claimed; imports nothing heavy."""

from __future__ import annotations

from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.errors import BadConfig

MINIMUM_TOKENS = 8192
"""Least default token budget of a micro-batch."""


def learner_tokens_per_device(config: StageConfig) -> int:
    """Token budget of a micro-batch on one device: as set, or one sequence of the longest possible length.

    The floor is for small contexts, where a micro-batch a sequence would be all overhead.
    """
    recipe = config.recipe
    return recipe.tokens_per_device or max(MINIMUM_TOKENS, recipe.max_prompt_tokens + config.stage.context_tokens)


def check_learner_config(config: StageConfig) -> None:
    """Refuse settings that the learner does not support; raises `BadConfig` naming field and mend."""
    recipe = config.recipe
    if recipe.kl_coefficient > 0:
        raise BadConfig(
            f"recipe.klCoefficient is {recipe.kl_coefficient}, but no reference model is loaded to take a KL "
            "divergence to: set it to 0 (the recipe's value)",
            field="recipe.klCoefficient",
        )
    if recipe.sequence_parallel > 1:
        raise BadConfig(
            f"recipe.sequenceParallel is {recipe.sequence_parallel}, and only 1 is supported so far: set it to 1 and "
            "give learners enough memory for one whole sequence",
            field="recipe.sequenceParallel",
        )
    longest = recipe.max_prompt_tokens + config.stage.context_tokens
    if learner_tokens_per_device(config) < longest:
        raise BadConfig(
            f"recipe.tokensPerDevice is {recipe.tokens_per_device}, but a sequence of stage {config.stage.name} may "
            f"have maxPromptTokens + contextTokens = {longest} tokens: raise it to at least that",
            field="recipe.tokensPerDevice",
        )
