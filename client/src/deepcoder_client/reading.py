"""Reads plain runs as this build's types. A run of another release may have fields or values that these do not know."""

from __future__ import annotations

import logging

from pydantic import ValidationError

from deepcoder_client.connection import Object
from deepcoder_client.errors import Unknown
from deepcoder_contracts.api.run import DeepCoderRun

log = logging.getLogger(__name__)


def typed(run: Object) -> DeepCoderRun:
    """Parse a plain run. Raises `Unknown`, which names the first field that this build cannot read."""
    try:
        return DeepCoderRun.model_validate(run)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise Unknown(_named(run), f"{field}: {first['msg']}") from None


def changed(run: Object) -> DeepCoderRun:
    """Parse a run that is as the caller asked for. `Unknown` says so too: the change took effect nevertheless."""
    try:
        return typed(run)
    except Unknown as error:
        raise Unknown(_named(run), error.why, run) from None


def known(run: Object) -> DeepCoderRun | None:
    """Parse a plain run. None, with a warning in the log, if this build cannot read it."""
    try:
        return typed(run)
    except Unknown as error:
        log.warning("%s", error)
        return None


def _named(run: Object) -> str:
    return f"{run['metadata']['namespace']}/{run['metadata']['name']}"
