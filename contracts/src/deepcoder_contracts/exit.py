"""How an attempt ended, as the trainer reports it.

A RayJob's status has no exit code, so the trainer writes `exit.json` next to its claim before it exits. The operator
looks at this record first. A process that is killed outright leaves none; the operator then uses pods and events.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from deepcoder_contracts.base import Digest, Record


class ExitCode(IntEnum):
    """Exit codes of `deepcoder-trainer run`. Any other code is a crash."""

    DONE = 0
    BAD_CONFIG = 64
    DRAINED = 75


class ExitRecord(Record):
    """exit.json."""

    code: int = Field(ge=0, le=255)
    """Exit code of the process."""

    reason: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]{0,62}$")]
    """Cause in CamelCase: Completed, Drained, SandboxUnavailable, BadConfig, OutOfMemory, Crashed, …"""

    message: str = Field(default="", max_length=4096)
    """Human-readable message, without secrets."""

    field: str | None = None
    """Configuration field at fault, if there is one."""

    step: int = Field(default=0, ge=0)
    """Last finished step of the stage."""

    pod_uid: Annotated[str, StringConstraints(max_length=64)] | None = None
    """UID of the process's pod, if it ran in one. An attempt that its queue stopped and admitted again has several
    pods."""

    manifest_digest: Digest | None = None
    """Digest of the newest committed checkpoint's manifest."""
