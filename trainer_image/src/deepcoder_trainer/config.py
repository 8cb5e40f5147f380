"""Reads the file that `run --config` names, and refuses early what cannot work.

It imports nothing heavy, so an invalid file is refused within a second, with the field, its value and the fix. JSON is
YAML, so one reader serves both.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import StageConfig, StageSettings
from deepcoder_contracts.supported import stage_refusals
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.localrun import LocalRun
from deepcoder_trainer.yaml_file import read_yaml

_KINDS: dict[str, type[StageConfig] | type[LocalRun]] = {"StageConfig": StageConfig, "LocalRun": LocalRun}


def load_config(path: Path) -> StageConfig | LocalRun:
    """Read and validate a file. Raises `BadConfig` that names every invalid field."""
    document = read_yaml(path, "--config")
    if not isinstance(document, dict):
        raise BadConfig(f"--config {path} holds no object: write the fields of a StageConfig or a LocalRun")
    if "kind" not in document and "stages" in document:
        raise BadConfig("kind: missing: a file with stages is a run by hand: write kind: LocalRun", field="kind")
    kind = document.get("kind", "StageConfig")
    if kind not in _KINDS:
        raise BadConfig(f"kind is {kind!r}: use one of {', '.join(_KINDS)}", field="kind")
    try:
        config = _KINDS[kind].model_validate(document)
    except ValidationError as error:
        raise explain(error) from None
    check_supported(config)
    return config


def check_supported(config: StageConfig | LocalRun) -> None:
    """Raise `BadConfig` that lists all unsupported settings."""
    stages: list[tuple[Recipe, StageSettings]]
    if isinstance(config, LocalRun):
        stages = [(config.recipe_of(stage), stage) for stage in config.stages]
    else:
        stages = [(config.recipe, config.stage)]
    found = [r for recipe, stage in stages for r in stage_refusals(recipe, stage, f"stages[{stage.name}]")]
    if found:
        raise BadConfig("\n".join(r.message for r in found), field=found[0].field)


def _uri_mend(field: str, value: str) -> str:
    """Return the fix for an invalid URI. For a plain path, which is the most likely mistake, include its file URI."""
    forms = "s3://bucket/prefix or file:///path"
    if field != "storage.uri":
        forms = "hf://org/name, s3://bucket/key, file:///path or a path from /"
    here = Path(value).absolute()
    meant = f", here file://{here}" if "://" not in value and " " not in str(here) else ""
    return f"give {forms}, without blanks{meant}"


def explain(error: ValidationError, options: Mapping[str, str] | None = None) -> BadConfig:
    """Return an error with one line per fault: field, value, and reason.

    `options` maps a field to the name of the command's option that sets it.
    """
    lines: list[str] = []
    fields: list[str] = []
    for fault in error.errors(include_url=False):
        field = ".".join(str(part) for part in fault["loc"])
        field = (options or {}).get(field, field)
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "there is no such field: check its spelling and place"
        elif fault["type"] == "string_pattern_mismatch" and field.endswith("uri"):
            message = _uri_mend(field, str(fault["input"]))
        shown = (
            ""
            if fault["type"] == "missing" or isinstance(fault["input"], dict | list | BaseModel)
            else (f" is {fault['input']!r}")
        )
        lines.append(f"{field}{shown}: {message}" if field else message)
        fields.append(field)
    return BadConfig("\n".join(lines), field=fields[0] or None)


def settle_options(options: argparse.Namespace, defaults: Mapping[str, Any], without_effect: str | None) -> None:
    """Fill in the defaults of options that were not given.

    `without_effect`: why these options would do nothing, and the mend. If it is given, an option that was set is
    refused.
    """
    given = [f"--{name.replace('_', '-')}" for name in defaults if getattr(options, name) is not None]
    if given and without_effect is not None:
        raise BadConfig(
            f"{', '.join(given)}: {without_effect}, or leave {'them' if len(given) > 1 else 'it'} out", field=given[0]
        )
    for name, default in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
