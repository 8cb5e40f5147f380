"""Checks settings against a model: lengths beyond its positions, and numbers that must divide each other.

An attempt runs the checks once it has read the model's config.json, a plan before anything is applied. A command has
options in place of a run's fields; its messages name these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deepcoder_contracts.model_shape import ModelShape, positions, sp_refusals
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.supported import Refusal


@dataclass(frozen=True)
class Names:
    """What messages call the settings that a command may have as options."""

    context_tokens: str | None = None
    """None: the path of the stage's field."""
    max_prompt_tokens: str = "recipe.maxPromptTokens"
    tensor_parallel: str = "recipe.tensorParallel"
    scaling: str | None = "give the stage a rope scaling"
    """How to give the model more positions. None: there is no option for it."""


IN_A_RUN = Names()


def length_refusals(
    config: Mapping[str, Any], recipe: Recipe, context: int, field: str, names: Names = IN_A_RUN
) -> Iterator[Refusal]:
    """Yield a refusal if sequences may be longer than the model's positions. vLLM would not start."""
    reach, longest = positions(config), recipe.max_prompt_tokens + context
    if longest <= reach:
        return
    room = int(reach) - recipe.max_prompt_tokens
    fix = f"set it to at most {room}" if room > 0 else f"lower {names.max_prompt_tokens} below {int(reach)}"
    fixes = [each for each in (fix, names.scaling, "use a model with more positions") if each is not None]
    yield Refusal(
        field,
        f"{field} is {context}: with {names.max_prompt_tokens} {recipe.max_prompt_tokens} a sequence has up to "
        f"{longest} tokens, but the model has {int(reach)} positions (max_position_embeddings of its config.json): "
        f"{', or '.join(fixes)}",
    )


def tp_refusals(shape: ModelShape, recipe: Recipe, names: Names = IN_A_RUN) -> Iterator[Refusal]:
    """Yield a refusal if the attention heads do not divide over the devices of an engine."""
    devices = recipe.tensor_parallel
    possible = [n for n in range(1, 9) if not any(sp_refusals(shape, n))]  # the same rule
    if devices not in possible:
        yield Refusal(
            names.tensor_parallel,
            f"{names.tensor_parallel} is {devices}, but the model has {shape.heads} attention heads and "
            f"{shape.kv_heads} key-value heads, which divide over {', '.join(map(str, possible))} devices: set it to "
            "one of these",
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
