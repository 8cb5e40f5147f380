"""Settings that the API accepts and the trainer does not support yet, in one list.

The operator checks the list before it requests GPUs, the trainer when it reads its config. An unsupported setting is
refused by name, never ignored. When you add a behaviour, remove its entry here. Pure: values in, refusals out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.rope import RopeScaling, RopeType
from deepcoder_contracts.stage import Placement, StageType

ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")
"""Supported dense decoders, by their names in config.json."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Refusal:
    """A setting that cannot work here."""

    field: str
    """Path of the setting."""

    message: str
    """Field, value, reason, and how to fix it."""


class StageLike(Protocol):
    """The fields of a stage that are checked, from the API or from a stage config."""

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
    """Yield what is unsupported in a stage, or does not fit the recipe. `where` is the stage's path."""
    if stage.type is not StageType.TRAIN:
        return
    if stage.rope is not None and stage.rope.type is RopeType.DYNAMIC:
        yield Refusal(
            f"{where}.rope",
            f"{where}.rope.type is Dynamic, whose frequencies depend on the length of the computed input, and training "
            "packs many sequences into one input: use Yarn, or use Dynamic only in Evaluate stages",
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
            f"{where}.placement is Colocated, where sampling and training take turns on the same devices, but with "
            f"recipe.maxOffPolicy {recipe.max_off_policy} they overlap: set maxOffPolicy: 0 (and order: Strict), "
            "or placement: Separate",
        )
    if recipe.tensor_parallel > 1:
        yield Refusal(
            "recipe.tensorParallel",
            f"recipe.tensorParallel is {recipe.tensor_parallel}, but with {where}.placement Colocated each engine has "
            "the one device of its learner: set tensorParallel: 1, or placement: Separate",
        )


def model_refusals(config: Mapping[str, Any]) -> Iterator[Refusal]:
    """Yield what is unsupported in a model's config.json."""
    names = [str(name) for name in config.get("architectures") or ()]
    experts = [key for key in _EXPERTS if config.get(key)]
    if experts or any("Moe" in name or "Mixtral" in name for name in names):
        yield Refusal(
            "model.uri",
            f"the model is a mixture of experts ({', '.join(experts or names)}), which is not supported: use a "
            f"dense model of {', '.join(ARCHITECTURES)}",
        )
    elif not names or names[0] not in ARCHITECTURES:
        yield Refusal(
            "model.uri",
            f"the model's architecture is {', '.join(names) or 'not named'}, which is not supported: use one of "
            f"{', '.join(ARCHITECTURES)}",
        )


def quantized_refusals(config: Mapping[str, Any], uri: str) -> Iterator[Refusal]:
    """Refuse quantized models: all weights are converted to the recipe's dtype, which would round packed integers."""
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        yield Refusal(
            "model.uri",
            f"the model at {uri} is quantized (quantization_config in its config.json: "
            f"{method or 'of no named method'}), and models are trained and measured in bfloat16 or float32 here: use "
            "the model that it was made from, or judge responses that another server has sampled with it (evaluate "
            "--responses)",
        )
