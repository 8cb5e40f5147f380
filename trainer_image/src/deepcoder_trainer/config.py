"""Reading the file that `run --config` names, and refusing early what cannot work.

Imports nothing heavy: a wrong file is refused within a second, with the field, its value and the mend, whatever is
wrong with it. JSON is YAML, so one reader serves both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import Placement, StageConfig, StageType
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.learner.limits import check_learner_config
from deepcoder_trainer.localrun import LocalRun

_KINDS: dict[str, type[StageConfig] | type[LocalRun]] = {"StageConfig": StageConfig, "LocalRun": LocalRun}


def load_config(path: Path) -> StageConfig | LocalRun:
    """The document in a file; raises `BadConfig` that names every field at fault."""
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise BadConfig(f"--config {path} cannot be read: {error.strerror}", field="--config") from error
    except yaml.YAMLError as error:
        raise BadConfig(f"--config {path} is neither JSON nor YAML: {error}", field="--config") from error
    if not isinstance(document, dict):
        raise BadConfig(f"--config {path} holds no object: write the fields of a StageConfig or a LocalRun")
    kind = document.get("kind", "StageConfig")
    if kind not in _KINDS:
        raise BadConfig(f"kind is {kind!r}: use one of {', '.join(_KINDS)}", field="kind")
    try:
        config = _KINDS[kind].model_validate(document)
    except ValidationError as error:
        raise explain(error, document) from None
    stages = config.stages if isinstance(config, LocalRun) else [config.stage]
    check_recipe(config.recipe)
    for number, stage in enumerate(stages):
        if stage.type is StageType.TRAIN:
            check_learner_config(config.stage_config(number, 1, None) if isinstance(config, LocalRun) else config)
        if stage.placement is Placement.COLOCATED and stage.type is StageType.TRAIN:
            raise BadConfig(
                f"placement of stage {stage.name} is Colocated, which is not supported yet: use Separate",
                field="stage.placement",
            )
    return config


def check_recipe(recipe: Recipe) -> None:
    """Refuse what the controller does not do yet."""
    if recipe.refill:
        raise BadConfig(
            "recipe.refill is true, which is not supported yet: leave it out (the recipe keeps groups whose rewards "
            "are all equal)",
            field="recipe.refill",
        )


def explain(error: ValidationError, document: Any) -> BadConfig:
    """One line a fault: field, value, and what is wrong with it."""
    lines: list[str] = []
    fields: list[str] = []
    for fault in error.errors(include_url=False):
        field = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "there is no such field: check its spelling and place"
        shown = (
            ""
            if fault["type"] == "missing" or isinstance(fault["input"], dict | list | BaseModel)
            else (f" is {fault['input']!r}")
        )
        lines.append(f"{field}{shown}: {message}" if field else message)
        fields.append(field)
    return BadConfig("\n".join(lines), field=fields[0] or None)
