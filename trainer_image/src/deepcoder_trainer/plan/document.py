"""Reads the part of a run's file that a plan needs (DeepCoderRun, LocalRun or StageConfig): model, recipe, lengths.

Everything else is ignored, so a manifest with pods and buckets can be planned without a cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from deepcoder_contracts.learner_memory import tokens_on_device
from deepcoder_contracts.recipe import Recipe, StageRecipe
from deepcoder_contracts.rope import RopeScaling
from deepcoder_contracts.stage import Placement, StageType
from deepcoder_trainer.config import explain
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.yaml_file import read_yaml

KINDS = ("DeepCoderRun", "LocalRun", "StageConfig")


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel)


class _Model(_Read):
    uri: str


class _Evaluation(_Read):
    context_tokens: int | None = Field(default=None, ge=1)


class PlannedStage(_Read):
    """The fields of a stage that a plan needs."""

    name: str
    type: StageType = StageType.TRAIN
    context_tokens: int = Field(ge=1)
    evaluate: _Evaluation | None = None
    rope: RopeScaling | None = None
    recipe: StageRecipe | None = None
    placement: Placement = Placement.SEPARATE

    @property
    def colocated(self) -> bool:
        """Whether a sampler and a learner take turns on each GPU."""
        return self.placement is Placement.COLOCATED and self.type is StageType.TRAIN

    @property
    def longest(self) -> tuple[int, str]:
        """Longest response that the stage samples, in tokens, and the field that sets it."""
        where = f"stages[{self.name}]"
        evaluated = (self.evaluate.context_tokens if self.evaluate else None) or 0
        if evaluated > self.context_tokens:
            return evaluated, f"{where}.evaluate.contextTokens"
        return self.context_tokens, f"{where}.contextTokens"


class Planned(_Read):
    """The fields of a run that determine its memory."""

    model: _Model
    recipe: Recipe = Recipe()
    stages: Annotated[list[PlannedStage], Field(min_length=1)]

    @model_validator(mode="after")
    def _recipes_fit(self) -> Self:
        for stage in self.stages:
            if stage.recipe and (misfit := stage.recipe.misfit(self.recipe)):
                raise ValueError(f"stages[{stage.name}].recipe: {misfit}")
        return self

    def recipe_of(self, stage: PlannedStage) -> Recipe:
        """Return the run's recipe with the overrides of a stage."""
        return stage.recipe.over(self.recipe) if stage.recipe else self.recipe

    @property
    def trained(self) -> PlannedStage | None:
        """The Train stage whose micro-batches may have the most tokens, if any."""
        train = [stage for stage in self.stages if stage.type is StageType.TRAIN]
        return max(
            train,
            key=lambda stage: (tokens_on_device(self.recipe_of(stage), stage.context_tokens), stage.context_tokens),
            default=None,
        )

    @property
    def sampled(self) -> tuple[int, str]:
        """Longest response of all stages, in tokens, and the field that sets it."""
        return max((stage.longest for stage in self.stages), key=lambda found: found[0])


def read_planned(path: Path) -> Planned:
    """Read the run in a file. Raises `BadConfig` that names every invalid field."""
    document = read_yaml(path)
    if not isinstance(document, dict) or (kind := document.get("kind", "StageConfig")) not in KINDS:
        raise BadConfig(f"{path} holds no run: give a file of kind {', '.join(KINDS)}", field="kind")
    fields: Any = document
    if kind == "DeepCoderRun":
        fields = document.get("spec")
    elif kind == "StageConfig":
        fields = {**document, "stages": [document["stage"]] if "stage" in document else []}
    if not isinstance(fields, dict):
        raise BadConfig(f"{path}: spec is missing", field="spec")
    try:
        return Planned.model_validate(fields)
    except ValidationError as error:
        raise explain(error) from None
