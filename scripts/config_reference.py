"""The reference of configuration files, docs/config.md, from the types that read them.

`python scripts/config_reference.py` writes it, `--check` fails where it differs, both where a field has no sentence.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pages
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deepcoder_contracts.sentences import Described
from deepcoder_contracts.stage import StageConfig
from deepcoder_operator.config import OperatorConfig
from deepcoder_trainer.localrun import LocalRun
from deepcoder_trainer.problems.rows import ProblemRow
from deepcoder_web.config import WebConfig

Schema = dict[str, Any]
PAGE = pages.DOCS / "config.md"
FILES: dict[type[BaseModel], tuple[str, str]] = {
    LocalRun: (
        "A run by hand",
        "What `deepcoder-trainer run --config` takes from a researcher: all stages in one file, JSON or YAML, with "
        "`kind: LocalRun`. [examples/local-demo.yaml](../examples/local-demo.yaml) is one.",
    ),
    StageConfig: (
        "A stage",
        "What the operator writes for each attempt, in the attempt's ConfigMap, and its trainer reads; "
        "`deepcoder-trainer run --config` takes it by hand, too. A field that a trainer does not know is refused.",
    ),
    ProblemRow: (
        "A row of a training set",
        "A line of our JSON Lines, or a row of Parquet with these columns; what the published layouts have is in "
        "[Data](data.md#layouts).",
    ),
    OperatorConfig: ("The operator", "`deepcoder-operator run --config`; the chart creates it from its values."),
    WebConfig: ("The dashboard", "`deepcoder-web serve --config`; the chart creates it from its values."),
}


def page() -> str:
    """The page; raises ValueError for fields without a sentence."""
    _, document = models_json_schema(
        [(kind, "validation") for kind in FILES], by_alias=True, ref_template="{model}", schema_generator=Described
    )
    types: dict[str, Schema] = document["$defs"]
    lines = [
        "# Configuration files",
        "",
        "Made from the types that read them by `make generate`. Unknown fields are refused by name. What a run says in",
        "a cluster is in [Custom resources](api.md), what the chart takes in [Values of the chart](chart-values.md).",
    ]
    told: set[str] = set()
    for kind, (title, words) in FILES.items():
        lines += ["", f"## {title}", "", words, *_table(kind.__name__, types)]
        told.add(kind.__name__)
        for name in _below(kind.__name__, types):
            if name not in told:
                told.add(name)
                lines += ["", f"### {_title(name)}", "", _sentence(types[name]), *_table(name, types)]
    return pages.joined(lines)


def _title(name: str) -> str:
    """Of a type; one of two parts that share a name says whose it is."""
    part, _, short = name.rpartition("__")
    return f"{short} of the operator" if part.startswith("deepcoder_operator") else short


def _below(name: str, types: dict[str, Schema]) -> Iterator[str]:
    """Types with fields that a type's fields are made of, each before its own; those met on the way once."""
    seen = {name}
    queue = [name]
    while queue:
        found = re.findall(r'"\$ref": "(\w+)"', json.dumps(types[queue.pop(0)]))
        for other in dict.fromkeys(found):
            if other not in seen and "properties" in types[other]:
                seen.add(other)
                queue.append(other)
                yield other


def _table(name: str, types: dict[str, Schema]) -> list[str]:
    schema = types[name]
    rows = ["", "| field | type | default | what |", "|---|---|---|---|"]
    for field, inner in schema["properties"].items():
        sentence = _sentence(inner) or _sentence(types.get(inner.get("$ref", ""), {}))
        if not sentence:
            raise ValueError(f"{name}.{field} says nothing of itself: give it a sentence")
        bounds = pages.bounds(inner)
        what = " ".join([pages.escaped(sentence), f"({'; '.join(bounds)})" if bounds else ""]).strip()
        rows.append(
            f"| `{field}` | {_type(inner, types)} | {_default(inner, field in schema.get('required', ()))} | {what} |"
        )
    return rows


def _type(field: Schema, types: dict[str, Schema]) -> str:
    if "$ref" in field:
        other = types[field["$ref"]]
        title = _title(field["$ref"])
        return f"[{title}](#{title.lower().replace(' ', '-')})" if "properties" in other else _type(other, types)
    if "allOf" in field:
        return _type(field["allOf"][0], types)
    if "anyOf" in field:
        parts = [_type(each, types) for each in field["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        items = field.get("items") or next(iter(field.get("prefixItems", ())), {})
        return f"list of {_type(items, types)}"
    if isinstance(field.get("additionalProperties"), dict):
        return f"map of {_type(field['additionalProperties'], types)}"
    return str(field.get("format") or field.get("type") or "any")


def _default(field: Schema, required: bool) -> str:
    if required:
        return "required"
    default = field.get("default")
    # Of a part, what it has where nothing is said is in its own table.
    return "" if default is None or isinstance(default, dict) else f"`{json.dumps(default)}`"


def _sentence(schema: Schema) -> str:
    return " ".join(str(schema.get("description", "")).split())


if __name__ == "__main__":
    sys.exit(pages.main(PAGE, page(), __doc__))
