"""Generates docs/api.md from the CRDs: every field with its type, default, bounds and rules.

`python scripts/api_reference.py` writes the page; `--check` fails if it differs. The fields of pod templates are
Kubernetes' own and are not listed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pages
import yaml

CRDS = [pages.ROOT / "crds" / f"deepcoder.dev_{name}.yaml" for name in ("deepcoderruns", "sandboxpools")]
PAGE = pages.DOCS / "api.md"
Schema = dict[str, Any]


def page() -> str:
    """The text of the page."""
    lines = [
        "# Custom resources",
        "",
        "Generated from the CRDs by `make generate`; `kubectl explain dcr.spec` shows the same. The API server checks",
        "all rules before anything runs; the lists below are the messages that you get.",
    ]
    for path in CRDS:
        crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
        (version,) = crd["spec"]["versions"]
        names, schema = crd["spec"]["names"], version["schema"]["openAPIV3Schema"]
        lines += [
            "",
            f"## {names['kind']}",
            "",
            f"`{crd['spec']['group']}/{version['name']}`, short name `{names['shortNames'][0]}`.",
        ]
        lines += _rules(schema)
        for part in ("spec", "status"):
            lines += ["", f"### {names['kind']}.{part}", "", _sentence(schema["properties"][part])]
            lines += _table(schema["properties"][part], part)
    return pages.joined(lines)


def _table(schema: Schema, path: str) -> list[str]:
    """The fields of an object, then those of its nested objects."""
    found = ["", "| field | type | default | what |", "|---|---|---|---|"]
    for name, field in schema.get("properties", {}).items():
        need = name in schema.get("required", ())
        found.append(f"| `{name}` | {_type(field)} | {_default(field, need)} | {_what(field)} |")
    found += _rules(schema)
    for name, field in schema.get("properties", {}).items():
        inner, suffix = _inner(field)
        if inner.get("properties"):
            found += ["", f"#### {path}.{name}{suffix}", "", _sentence(inner) or _sentence(field)]
            found += _table(inner, f"{path}.{name}{suffix}")
    return found


def _inner(field: Schema) -> tuple[Schema, str]:
    if field.get("type") == "array":
        return field.get("items", {}), "[]"
    if isinstance(field.get("additionalProperties"), dict):
        return field["additionalProperties"], "{}"
    return field, ""


def _type(field: Schema) -> str:
    if field.get("x-kubernetes-preserve-unknown-fields"):
        return "object, as Kubernetes has it"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    inner, suffix = _inner(field)
    kind = str(inner.get("format") or inner.get("type") or "any")
    return f"{'list of ' if suffix == '[]' else 'map of ' if suffix == '{}' else ''}{kind}"


def _default(field: Schema, need: bool) -> str:
    if need:
        return "required"
    return f"`{json.dumps(field['default'])}`" if "default" in field else ""


def _what(field: Schema) -> str:
    inner, _ = _inner(field)
    bounds = pages.bounds(field)
    if inner is not field:
        bounds += [f"each {words}" for words in pages.bounds(inner)]
    return " ".join([pages.escaped(_sentence(field)), f"({'; '.join(bounds)})" if bounds else ""]).strip()


def _rules(schema: Schema) -> list[str]:
    """The messages of CEL rules, as a list."""
    told = list(_messages(schema))
    return ["", *(f"- {pages.escaped(message)}" for message in told)] if told else []


def _messages(schema: Schema) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        where = rule.get("fieldPath", "")
        yield f"`{where.lstrip('.')}`: {rule['message']}" if where else str(rule["message"])


def _sentence(schema: Schema) -> str:
    return " ".join(str(schema.get("description", "")).split())


if __name__ == "__main__":
    sys.exit(pages.main(PAGE, page(), __doc__))
