"""Checks settings against a model: lengths beyond its positions, and numbers that must divide each other.

An attempt runs the checks once it has read the model's config.json, a plan before anything is applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deepcoder_contracts.model_shape import ModelShape, positions, sp_refusals
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.supported import Refusal


def length_refusals(config: Mapping[str, Any], recipe: Recipe, context: int, field: str) -> Iterator[Refusal]:
    """Yield a refusal if sequences may be longer than the model's positions. vLLM would not start."""
    reach, longest = positions(config), recipe.max_prompt_tokens + context
    if longest <= reach:
        return
    room = int(reach) - recipe.max_prompt_tokens
    fix = f"set it to at most {room}" if room > 0 else f"lower recipe.maxPromptTokens below {int(reach)}"
    yield Refusal(
        field,
        f"{field} is {context}: with recipe.maxPromptTokens {recipe.max_prompt_tokens} a sequence has up to {longest} "
        f"tokens, but the model has {int(reach)} positions (max_position_embeddings of its config.json): {fix}, or "
        "give the stage a rope scaling, or use a model with more positions",
    )


def tp_refusals(shape: ModelShape, recipe: Recipe) -> Iterator[Refusal]:
    """Yield a refusal if the attention heads do not divide over the devices of an engine."""
    devices = recipe.tensor_parallel
    possible = [n for n in range(1, 9) if not any(sp_refusals(shape, n))]  # the same rule
    if devices not in possible:
        yield Refusal(
            "recipe.tensorParallel",
            f"recipe.tensorParallel is {devices}, but the model has {shape.heads} attention heads and {shape.kv_heads} "
            f"key-value heads, which divide over {', '.join(map(str, possible))} devices: set it to one of these",
        )


def rank_refusals(shape: ModelShape, recipe: Recipe, ranks: int) -> Iterator[Refusal]:
    """Yield refusals if ranks or attention heads do not divide into groups that share a sequence."""
    sp = recipe.sequence_parallel
    if ranks % sp:
        possible = " or ".join(str(n) for n in range(1, 9) if not ranks % n and not any(sp_refusals(shape, n)))
        yield Refusal(
            "recipe.sequenceParallel",
            f"recipe.sequenceParallel is {sp}, but there are {ranks} learners: set it to {possible}, or give "
            "the stage another number of learners",
        )
    yield from sp_refusals(shape, sp)
