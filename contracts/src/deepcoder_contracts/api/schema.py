"""Generates CRDs from pydantic types: structural JSON Schema with CEL rules, printer columns and subresources.

The API server accepts only part of JSON Schema: no `$ref`, no `anyOf`, and a type everywhere. It also needs a bound on
every string, list and map, because it estimates the cost of a CEL rule from the largest object that the schema admits.
Strings and maps without a bound get one here. A list without a bound is refused, because any guess would be wrong. A
type that cannot be expressed raises `SchemaError` with its path when the CRDs are generated, never on a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, JsonValue
from pydantic.json_schema import models_json_schema

from deepcoder_contracts.api.base import GROUP, LIST_MAP_KEYS, LIST_TYPE, PRESERVE, VALIDATIONS, VERSION
from deepcoder_contracts.sentences import Described

MAX_STRING = 1024
MAX_PROPERTIES = 64

_KEPT = (
    *("description", "type", "enum", "format", "pattern", "minimum", "maximum", "multipleOf", "required", "nullable"),
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
)


class SchemaError(ValueError):
    """A type has no structural schema. The message starts with the type's path."""


@dataclass(frozen=True)
class Column:
    """A printer column."""

    name: str
    """Heading."""

    path: str
    """JSONPath from the object's root."""

    type: str = "string"
    """string, integer or date."""

    wide: bool = False
    """Shown with `-o wide` only."""

    description: str = ""
    """One sentence that describes the column."""


@dataclass(frozen=True)
class CustomResource:
    """A kind and how it is served."""

    kind: str
    """CamelCase kind."""

    plural: str
    """Lower-case plural: the resource's name in URLs."""

    short_name: str
    """Short name for kubectl."""

    description: str
    """First lines of `kubectl explain`."""

    spec: type[BaseModel]
    """Type of the spec."""

    status: type[BaseModel]
    """Type of the status."""

    columns: tuple[Column, ...]
    """Printer columns."""

    rules: list[JsonValue] = field(default_factory=list)
    """CEL rules at the root. They can read metadata.name, spec and status."""

    scale: Mapping[str, str] | None = None
    """The /scale subresource."""

    without_defaults: frozenset[str] = frozenset()
    """Names of types whose defaults appear in descriptions but are not applied by the API server."""

    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Schema keywords that a type cannot carry, by path (for example `spec.stages[].promoteWhen.all`)."""


def custom_resource_definition(resource: CustomResource) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind."""
    _, document = models_json_schema(
        [(resource.spec, "validation"), (resource.status, "validation")],
        by_alias=True,
        ref_template="{model}",
        schema_generator=Described,
    )
    convert = _Converter(document["$defs"], resource)
    root: dict[str, Any] = {
        "type": "object",
        "description": resource.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this object's schema."},
            "kind": {"type": "string", "description": "The kind of this object."},
            "metadata": {"type": "object"},
            "spec": convert({"$ref": resource.spec.__name__}, "spec", defaults=True),
            "status": convert({"$ref": resource.status.__name__}, "status", defaults=False),
        },
    }
    if resource.rules:
        root[VALIDATIONS] = resource.rules
    subresources: dict[str, Any] = {"status": {}}
    if resource.scale:
        subresources["scale"] = dict(resource.scale)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [resource.short_name],
                "categories": ["ml"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": root},
                    "subresources": subresources,
                    "additionalPrinterColumns": [_column(c) for c in resource.columns],
                }
            ],
        },
    }


def _column(column: Column) -> dict[str, Any]:
    out: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.description:
        out["description"] = column.description
    if column.wide:
        out["priority"] = 1
    return out


class _Converter:
    """Converts pydantic's JSON Schema to a structural schema. Holds the definitions and walks them by path."""

    def __init__(self, definitions: Mapping[str, Any], resource: CustomResource) -> None:
        self._definitions = definitions
        self._resource = resource

    def __call__(self, schema: Mapping[str, Any], path: str, *, defaults: bool) -> dict[str, Any]:
        flat, names = self._flatten(schema, path)
        defaults = defaults and not names & self._resource.without_defaults
        out: dict[str, Any] = {k: flat[k] for k in _KEPT if flat.get(k) is not None}
        if "const" in flat:
            out["enum"] = [flat["const"]]
        if "description" in out:
            out["description"] = " ".join(out["description"].split())
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if exclusive in flat:
                out |= {bound: flat[exclusive], exclusive: True}
        out |= {k: v for k, v in flat.items() if k.startswith("x-kubernetes-")}
        self._complete(out, flat, path, defaults)
        out |= self._resource.overrides.get(path, {})
        if "type" not in out and "x-kubernetes-int-or-string" not in out:
            raise SchemaError(f"{path}: {sorted(flat)} has no structural type; give the field one plain type")
        return out

    def _complete(self, out: dict[str, Any], flat: Mapping[str, Any], path: str, defaults: bool) -> None:
        """Add what depends on the type: children and bounds."""
        match out.get("type"):
            case "object":
                self._object(out, flat, path, defaults)
            case "array":
                out["items"] = self(flat["items"], f"{path}[]", defaults=defaults)
                if "maxItems" not in out:
                    raise SchemaError(f"{path}: a list needs max_length, which bounds the cost of CEL rules")
                if flat.get("uniqueItems"):
                    out.setdefault(LIST_TYPE, "set")
                elif "name" in out["items"].get("required", ()):
                    out.setdefault(LIST_TYPE, "map")
                    out.setdefault(LIST_MAP_KEYS, ["name"])
                out.setdefault(LIST_TYPE, "atomic")
            case "string":
                if "enum" not in out and out.get("format") != "date-time":
                    out.setdefault("maxLength", MAX_STRING)
            case "integer":
                small = abs(out.get("maximum", 2**63)) < 2**31 and abs(out.get("minimum", 0)) < 2**31
                out["format"] = "int32" if small else "int64"
            case "number":
                out["format"] = "double"

    def _object(self, out: dict[str, Any], flat: Mapping[str, Any], path: str, defaults: bool) -> None:
        properties = flat.get("properties")
        if properties:
            out["properties"] = {
                name: self._property(name, prop, f"{path}.{name}", defaults) for name, prop in properties.items()
            }
        additional = flat.get("additionalProperties")
        if isinstance(additional, Mapping) and additional:
            out["additionalProperties"] = self(additional, f"{path}.*", defaults=defaults)
            out.setdefault("maxProperties", MAX_PROPERTIES)
        elif not properties and PRESERVE not in out:
            raise SchemaError(f"{path}: an object without properties is pruned to {{}}; declare them or preserve")

    def _property(self, name: str, prop: Mapping[str, Any], path: str, defaults: bool) -> dict[str, Any]:
        out = self(prop, path, defaults=defaults)
        default = prop.get("default")
        if default is None or default == [] or path.startswith("status"):
            return out
        if not defaults:
            shown = str(default).lower() if isinstance(default, bool) else default
            out["description"] = f"{out.get('description', name)} Default: {shown}.".replace("..", ".")
        else:
            # An object's default lists its fields: the API server runs CEL rules on it before it applies defaults.
            nested = {n: p["default"] for n, p in out.get("properties", {}).items() if "default" in p}
            out["default"] = nested if isinstance(default, Mapping) else default
        return out

    def _flatten(self, schema: Mapping[str, Any], path: str) -> tuple[dict[str, Any], set[str]]:
        """Resolve references and optionals. Sibling keywords override the referenced schema; CEL rules add up."""
        out = dict(schema)
        names: set[str] = set()
        while True:
            if "$ref" in out:
                name = out.pop("$ref")
                names.add(name)
                inner = self._definitions[name]
            elif "allOf" in out and len(out["allOf"]) == 1:
                inner = out.pop("allOf")[0]
            elif "anyOf" in out:
                options = [o for o in out.pop("anyOf") if o.get("type") != "null"]
                if len(options) != 1:
                    raise SchemaError(f"{path}: a union of types has no structural schema; choose one type")
                inner = options[0]
            else:
                return out, names
            rules = [*inner.get(VALIDATIONS, ()), *out.get(VALIDATIONS, ())]
            out = {**inner, **out}
            if rules:
                out[VALIDATIONS] = rules
