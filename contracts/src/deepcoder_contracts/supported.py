"""What the API can say and the trainer does not do yet: one list, for everybody who must refuse it.

The operator asks before it asks for GPUs, the trainer when it reads its config; a setting that is not supported is
refused by name, never ignored. Whoever adds the behaviour removes its line here. Pure: values in, refusals out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.rope import RopeScaling, RopeType
from deepcoder_contracts.stage import Placement, StageType

ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")
"""Dense decoders that are trained and sampled from, by their names in config.json."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Refusal:
    """A setting that cannot work here."""

    field: str
    """Its path."""

    message: str
    """Field, value, why, and how to mend it."""


class StageLike(Protocol):
    """What is asked of a stage, of the API's or of a stage config's."""

    @property
    def type(self) -> StageType:
        """Train or Evaluate."""

    @property
    def placement(self) -> Placement:
        """Separate or Colocated."""

    @property
    def context_tokens(self) -> int:
        """Longest response in tokens."""

    @property
    def rope(self) -> RopeScaling | None:
        """Scaled rotary positions."""


def stage_refusals(recipe: Recipe, stage: StageLike, where: str) -> Iterator[Refusal]:
    """What of a stage is not supported, or does not fit the recipe; `where` is the stage's own path."""
    if stage.type is not StageType.TRAIN:
        return
    if stage.rope is not None and stage.rope.type is RopeType.DYNAMIC:
        yield Refusal(
            f"{where}.rope",
            f"{where}.rope.type is Dynamic, whose frequencies follow the length of what is computed at once, which in "
            "training is many sequences: use Yarn, or keep it to Evaluate stages",
        )
    if stage.placement is Placement.COLOCATED:
        yield from _colocated_refusals(recipe, where)
    longest = recipe.max_prompt_tokens + stage.context_tokens
    share = -(-longest // recipe.sequence_parallel)
    if recipe.tokens_per_device is not None and recipe.tokens_per_device < share:
        shared = (
            f", {share} on each of sequenceParallel = {recipe.sequence_parallel} devices" if share < longest else ""
        )
        yield Refusal(
            "recipe.tokensPerDevice",
            f"recipe.tokensPerDevice is {recipe.tokens_per_device}, but a sequence of {where} may have "
            f"maxPromptTokens + contextTokens = {longest} tokens{shared}: raise it to at least {share}",
        )


def _colocated_refusals(recipe: Recipe, where: str) -> Iterator[Refusal]:
    if recipe.max_off_policy:
        yield Refusal(
            f"{where}.placement",
            f"{where}.placement is Colocated, where sampling and training take turns on the same devices, but "
            f"recipe.maxOffPolicy {recipe.max_off_policy} has them overlap: set maxOffPolicy: 0 (and order: Strict), "
            "or placement: Separate",
        )
    if recipe.tensor_parallel > 1:
        yield Refusal(
            "recipe.tensorParallel",
            f"recipe.tensorParallel is {recipe.tensor_parallel}, but with {where}.placement Colocated each engine has "
            "the one device of its learner: set tensorParallel: 1, or placement: Separate",
        )


def model_refusals(config: Mapping[str, Any]) -> Iterator[Refusal]:
    """What of a model's config.json is not supported."""
    names = [str(name) for name in config.get("architectures") or ()]
    experts = [key for key in _EXPERTS if config.get(key)]
    if experts or any("Moe" in name or "Mixtral" in name for name in names):
        yield Refusal(
            "model.uri",
            f"the model is a mixture of experts ({', '.join(experts or names)}), which is not trained here: use a "
            f"dense model of {', '.join(ARCHITECTURES)}",
        )
    elif not names or names[0] not in ARCHITECTURES:
        yield Refusal(
            "model.uri",
            f"the model's architecture is {', '.join(names) or 'not named'}, which is not supported: use one of "
            f"{', '.join(ARCHITECTURES)}",
        )
