"""The base of the API types, and the few field kinds that Kubernetes knows and pydantic does not.

Readers of the spec refuse unknown fields: the API server has pruned them already, so one that arrives belongs to a
CRD newer than this operator, and acting on half of a spec would be worse than saying so. Readers of the status drop
them, and read a word that they do not know as the next safest one that they do (`lenient`), since a downgraded operator
must still be able to go on.
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
"""Why a rule refuses a value where it does not say: the API server's own default, which is not written out."""

NAMED_MAP: dict[str, Any] = {LIST_TYPE: "map", LIST_MAP_KEYS: ["name"]}
"""Schema extra of a list whose elements are told apart by name."""


class Spec(BaseModel):
    """A part of what a user asks for: immutable, camelCase on the wire, unknown fields refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
    )


class Status(BaseModel):
    """A part of what the operator reports: immutable, camelCase on the wire, unknown fields dropped."""

    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
    )

    def to_wire(self) -> dict[str, Any]:
        """As stored: camelCase, times as RFC 3339 strings, unset options left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def lenient(fallback: StrEnum) -> BeforeValidator:
    """For an enum in a status: a newer release's word is read as `fallback`. The schema still lists the words."""
    known = frozenset(type(fallback))

    def read(value: object) -> object:
        return fallback if isinstance(value, str) and value not in known else value

    return BeforeValidator(read)


class Rule(NamedTuple):
    """A CEL rule; its message says what is wrong and how to mend it."""

    rule: str
    message: str
    reason: str = DEFAULT_REASON
    field_path: str | None = None


def validations(*rules: Rule) -> list[JsonValue]:
    """The rules as `x-kubernetes-validations`."""
    out: list[JsonValue] = []
    for r in rules:
        more: dict[str, JsonValue] = {"fieldPath": r.field_path} if r.field_path else {}
        if r.reason != DEFAULT_REASON:
            more["reason"] = r.reason
        out.append({"rule": r.rule, "message": r.message, **more})
    return out


def immutable(what: str, mend: str) -> dict[str, Any]:
    """Schema extra for a field that may not change once it is set."""
    return {VALIDATIONS: validations(Rule("self == oldSelf", f"{what} is immutable: {mend}"))}


ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
"""Name of another object in the same namespace."""

DecimalString = Annotated[str, StringConstraints(pattern=r"^-?[0-9]+(\.[0-9]+)?$", max_length=32)]
"""A decimal number as a string, as API conventions ask in a status."""

PodTemplate = Annotated[
    dict[str, Any],
    Field(json_schema_extra={"type": "object", PRESERVE: True, "additionalProperties": None}),
]
"""A PodTemplateSpec that is merged strategically over the operator's own; unknown fields are preserved."""


class LocalRef(Spec):
    """An object of the same namespace, by name."""

    name: ObjectName
    """Name of the object."""
