"""Base classes of the API types, and the few field kinds that Kubernetes has and pydantic does not.

Spec types refuse unknown fields. The API server prunes them, so an unknown field means that the CRD is newer than this
operator, and acting on half of a spec would be worse than an error. Status types drop unknown fields, and read an
unknown enum value as the safest known one (`lenient`), because a downgraded operator must keep working.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints
from pydantic.alias_generators import to_camel

GROUP = "deepcoder.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

LIST_TYPE = "x-kubernetes-list-type"
LIST_MAP_KEYS = "x-kubernetes-list-map-keys"
PRESERVE = "x-kubernetes-preserve-unknown-fields"
VALIDATIONS = "x-kubernetes-validations"

DEFAULT_REASON = "FieldValueInvalid"
"""The API server's default reason for a rule that names none. It is not written to the CRD."""

NAMED_MAP: dict[str, Any] = {LIST_TYPE: "map", LIST_MAP_KEYS: ["name"]}
"""Schema extra of a list that is keyed by name."""


class Spec(BaseModel):
    """Part of a spec: immutable, camelCase on the wire. Unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
    )


class Status(BaseModel):
    """Part of a status: immutable, camelCase on the wire. Unknown fields are dropped."""

    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
    )

    def to_wire(self) -> dict[str, Any]:
        """Return the stored form: camelCase, times as RFC 3339 strings, unset options left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def lenient(fallback: StrEnum) -> BeforeValidator:
    """Read an unknown value of a status enum, from a newer release, as `fallback`. The schema lists the values."""
    known = frozenset(type(fallback))

    def read(value: object) -> object:
        return fallback if isinstance(value, str) and value not in known else value

    return BeforeValidator(read)


class Rule(NamedTuple):
    """A CEL rule. Its message says what is wrong and how to fix it."""

    rule: str
    message: str
    reason: str = DEFAULT_REASON
    field_path: str | None = None
    optional_old_self: bool = False
    """Whether `oldSelf` is an optional, which has no value at creation. Such a rule can leave stored objects alone."""


def validations(*rules: Rule) -> list[JsonValue]:
    """Return the rules as `x-kubernetes-validations`."""
    out: list[JsonValue] = []
    for r in rules:
        more: dict[str, JsonValue] = {"fieldPath": r.field_path} if r.field_path else {}
        if r.reason != DEFAULT_REASON:
            more["reason"] = r.reason
        if r.optional_old_self:
            more["optionalOldSelf"] = True
        out.append({"rule": r.rule, "message": r.message, **more})
    return out


def immutable(what: str, remedy: str) -> dict[str, Any]:
    """Return the schema extra of a field that must not change once it is set."""
    return {VALIDATIONS: validations(Rule("self == oldSelf", f"{what} is immutable: {remedy}"))}


SERVICE_NAME = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""Pattern of a DNS label as Services need it (RFC 1035): other objects' names may begin with a digit, and have dots."""

ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
"""Name of another object in the same namespace."""

DecimalString = Annotated[str, StringConstraints(pattern=r"^-?[0-9]+(\.[0-9]+)?$", max_length=32)]
"""A decimal number as a string, as the API conventions require."""

PodTemplate = Annotated[
    dict[str, Any],
    Field(json_schema_extra={"type": "object", PRESERVE: True, "additionalProperties": None}),
]
"""A PodTemplateSpec that is applied to the operator's own as a strategic merge patch. Unknown fields are preserved."""


class LocalRef(Spec):
    """Reference to an object in the same namespace."""

    name: ObjectName
    """Name of the object."""
