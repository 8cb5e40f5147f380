"""Maps the end of an attempt, an error or an ending, to its exit record. Pure functions."""

from __future__ import annotations

import logging
import re

from deepcoder_contracts.exit import ExitCode, ExitRecord
from deepcoder_contracts.gate import GateRecord
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.problems.dataset import DatasetError
from deepcoder_trainer.protocols import SandboxUnavailable
from deepcoder_trainer.running.process_exit import CRASHED
from deepcoder_trainer.stopping import StopReached
from deepcoder_trainer.unicode_text import whole

log = logging.getLogger(__name__)


_LONGEST = 4000
"""Longest message in characters: the record takes 4096, and a secret in it may be replaced by a longer mark."""


def failed(error: BaseException, step: int) -> ExitRecord:
    """Return exit code and reason for an error."""
    message = _told(str(error)) or type(error).__name__
    if isinstance(error, BadConfig):
        return ExitRecord(code=ExitCode.BAD_CONFIG, reason="BadConfig", message=message, field=error.field, step=step)
    if isinstance(error, DatasetError):
        return ExitRecord(code=ExitCode.BAD_CONFIG, reason="BadConfig", message=message, field="dataset", step=step)
    if isinstance(error, SandboxUnavailable):
        return ExitRecord(code=ExitCode.DRAINED, reason="SandboxUnavailable", message=message, step=step)
    if isinstance(error, StopReached):
        return drained(message, step)
    log.error("the attempt crashed", exc_info=error)
    if isinstance(error, MemoryError) or "out of memory" in message.lower():
        return ExitRecord(code=CRASHED, reason="OutOfMemory", message=message, step=step)
    name = type(error).__name__
    reason = name if re.fullmatch(r"[A-Z][A-Za-z0-9]{0,62}", name) else "Crashed"
    return ExitRecord(code=CRASHED, reason=reason, message=message, step=step)


def drained(reason: str, step: int) -> ExitRecord:
    """The attempt was stopped on request. Run it again to continue."""
    return ExitRecord(code=ExitCode.DRAINED, reason="Drained", message=_told(reason), step=step)


def completed(step: int = 0, gate: GateRecord | None = None) -> ExitRecord:
    """The stage is over, and its result is stored."""
    message = f"gate {'met' if gate.met else 'unmet'}: {gate.values}" if gate is not None else ""
    return ExitRecord(code=ExitCode.DONE, reason="Completed", message=message, step=step)


def _told(text: str) -> str:
    """Return a text that fits a record: the name of a file may be no Unicode, and an error may have any length."""
    return whole(text)[:_LONGEST]
