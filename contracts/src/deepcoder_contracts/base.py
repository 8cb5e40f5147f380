"""Base classes of everything that crosses a boundary: strict, frozen, versioned, with one canonical byte form.

Operator, trainer and sandbox are released together but restarted separately, and a run keeps the trainer image that it
started with. So each may read what another release wrote. Every document therefore carries `schemaVersion`. A reader
accepts its own version and the previous one, and refuses all others by name instead of guessing. Within one version,
fields are only added, each with a default that keeps the earlier behaviour. A reader of an earlier release does not
know such a field:

- An *instruction* (the stage config, a submission) must be followed completely, so unknown fields are refused by name.
  An added field is therefore written only if it differs from its default: see `later`.
- A *record* (a manifest, a report, an answer) states facts. Unknown fields are ignored, at every depth.

Removing a field, making it required or changing its meaning takes a new `schemaVersion`.

The written form is plain JSON without NaN or infinity: settings refuse them, and measured values that are not numbers
are left out of their mapping. Digests are taken over the stored bytes, never over a re-encoding: a pydantic upgrade
that prints a float differently must not break a lineage chain.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
"""`sha256:` and 64 lowercase hexadecimal digits."""

DNSLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""A DNS label as Kubernetes defines it (RFC 1123)."""

_MOST_LISTED = 1000


def _finite(figures: Any) -> Any:
    if not isinstance(figures, dict):
        return figures
    return {k: v for k, v in figures.items() if not isinstance(v, float) or math.isfinite(v)}


Figures = Annotated[dict[str, float], BeforeValidator(_finite)]
"""Measured values by name. Values that are not finite, such as the loss of a diverged step, are left out."""


class Contract(BaseModel):
    """An immutable value, in camelCase on the wire. Unknown fields are refused, except in records."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    def to_json(self) -> bytes:
        """Return the canonical bytes: camelCase keys in sorted order, no white space, unset options left out."""
        data = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Parse a document. Raises `pydantic.ValidationError`, which names each offending field."""
        return cls.model_validate_json(data)


def later(default: Any, **constraints: Any) -> Any:
    """Declare a field that was added to an instruction within a schemaVersion. It is written only if it differs from
    its default."""
    return Field(default=default, exclude_if=lambda value: value == default, **constraints)


class VersionedContract(Contract):
    """A document that is stored, or sent between processes of possibly different versions."""

    CURRENT_VERSION: ClassVar[int] = 1
    OLDEST_VERSION: ClassVar[int] = 1

    schema_version: int = Field(default=0)
    """Version of this document's schema. A document without it is read as the current version."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_version(cls, data: Any) -> Any:
        if isinstance(data, dict):
            if "schemaVersion" not in data and "schema_version" not in data:
                data = {**data, "schema_version": cls.CURRENT_VERSION}
            version = data.get("schemaVersion", data.get("schema_version"))
            if not isinstance(version, int) or not cls.OLDEST_VERSION <= version <= cls.CURRENT_VERSION:
                raise ValueError(
                    f"schemaVersion {version!r} of {cls.__name__} cannot be read here (versions "
                    f"{cls.OLDEST_VERSION} to {cls.CURRENT_VERSION} can): use the release that wrote it, or a newer one"
                )
        return data


class Record(VersionedContract):
    """A document that states facts. Fields that a later release added are ignored."""

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Parse a document. Raises `pydantic.ValidationError`, which names each offending field."""
        return cls.model_validate_json(data, extra="ignore")


def first_error(e: ValidationError) -> str:
    """Return a document's first error, with its field. Of a document that is wrong all over, only how many it has:
    pydantic would make a dictionary of each."""
    if (count := e.error_count()) > _MOST_LISTED:
        return f"it has {count} errors"
    first = e.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}"


def sha256_digest(data: bytes) -> str:
    """Return the digest of stored bytes as `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
