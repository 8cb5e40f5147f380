"""The docstring below each field of a type, and a JSON Schema that has them as descriptions.

They are read from the source on demand, by the generators of CRDs and references. pydantic could read them when it
creates each class (`use_attribute_docstrings`), but it would do so in every process that loads these types, which took
a third of the loading time. A type without source has no descriptions, hence `OSError`.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue


class Described(GenerateJsonSchema):
    """Generates schemas that describe each property by its field's docstring, unless it has another description."""

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        """Return the schema of one type."""
        made = super().model_schema(schema)
        kind: type[BaseModel] = schema["cls"]
        told, properties = sentences(kind), made.get("properties", {})
        for name, field in kind.model_fields.items():
            if name in told:
                properties[field.alias or name].setdefault("description", told[name])
        return made


def sentences(kind: type[BaseModel]) -> Mapping[str, str]:
    """Return the docstrings by field, including those of base types."""
    own = [_of_module(base.__module__).get(base.__name__, {}) for base in reversed(kind.__mro__) if _is_made(base)]
    return {name: text for found in own for name, text in found.items()}


def _is_made(base: type) -> bool:
    return issubclass(base, BaseModel) and base is not BaseModel


@cache
def _of_module(module: str) -> Mapping[str, Mapping[str, str]]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: dict(_below_fields(node)) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def _below_fields(kind: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in pairwise(kind.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, inspect.cleandoc(text)
