"""How an attempt ended, in the trainer's own words.

A RayJob's status has no exit code, so the trainer writes `exit.json` beside its claim before it leaves. It is the
first evidence the operator looks at; a process killed outright leaves none, and then pods and events speak.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from deepcoder_contracts.base import Digest, Record


class ExitCode(IntEnum):
    """Exit codes of `deepcoder-trainer run`; anything else is a crash."""

    DONE = 0
    BAD_CONFIG = 64
    DRAINED = 75


class ExitRecord(Record):
    """exit.json."""

    code: int = Field(ge=0, le=255)
    """Exit code of the process."""

    reason: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]{0,62}$")]
    """CamelCase word for the cause: Completed, Drained, SandboxUnavailable, BadConfig, OutOfMemory, Crashed, …"""

    message: str = Field(default="", max_length=4096)
    """For people; bounded, without secrets."""

    field: str | None = None
    """Configuration field at fault, where one is."""

    step: int = Field(default=0, ge=0)
    """Step of the stage that was reached."""

    pod_uid: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Pod of the process, where it ran in one: an attempt that its queue stopped and admitted again has several."""

    manifest_digest: Digest | None = None
    """Newest checkpoint that was committed."""
