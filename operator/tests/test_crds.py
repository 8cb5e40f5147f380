"""The CRDs as files: as the types say, small, bounded, described."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from deepcoder_contracts.api import run, sandboxpool
from deepcoder_contracts.api.base import Spec, Status
from deepcoder_contracts.api.schema import CustomResource, SchemaError, custom_resource_definition
from deepcoder_operator import crds

FOLDER = Path(__file__).resolve().parents[2] / "crds"
NAMES = sorted(path.name for path in FOLDER.glob("*.yaml"))

crd_files = functools.cache(crds.crd_files)


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


def schemas() -> list[tuple[str, dict[str, Any]]]:
    out = []
    for text in crd_files().values():
        crd = yaml.load(text, yaml.CSafeLoader)
        out += list(nodes(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], crd["spec"]["names"]["kind"]))
    return out


def test_files_are_what_the_types_say() -> None:
    assert {p.name: p.read_text() for p in FOLDER.glob("*.yaml")} == crd_files()


@pytest.mark.parametrize("name", NAMES)
def test_file_is_far_below_the_size_that_kubectl_apply_can_annotate(name: str) -> None:
    """Which keeps the object as JSON; and there is room for what is still to come."""
    text = crd_files()[name]
    assert len(json.dumps(yaml.load(text, yaml.CSafeLoader)).encode()) < 90_000
    assert len(text.encode()) < 90_000


@pytest.mark.parametrize("name", NAMES)
def test_file_reads_as_what_is_applied_a_line_a_field(name: str) -> None:
    (resource,) = [r for r in (run.RESOURCE, sandboxpool.RESOURCE) if r.plural in name]
    text = crd_files()[name]
    assert yaml.load(text, yaml.CSafeLoader) == custom_resource_definition(resource)
    assert max(len(line) for line in text.splitlines()) < 300
    assert "&id" not in text, "an anchor is no part of what people read"


def test_every_field_is_described() -> None:
    undescribed = [
        p for p, n in schemas() if "." in p and not p.endswith("[]") and not n.get("description") and p.count(".") > 1
    ]
    assert undescribed == []


def test_everything_a_rule_may_walk_is_bounded() -> None:
    for path, node in schemas():
        if node.get("type") == "array":
            assert "maxItems" in node, path
            assert "x-kubernetes-list-type" in node, path
        free = node.get("type") == "string" and "enum" not in node and node.get("format") != "date-time"
        if free and path.count(".") > 1:
            assert "maxLength" in node, path


MENDS = re.compile(
    r"(^|[:,;] (or |and )?)(add|append|edit|gate|give|lower|make|name|order|raise|remove|set|shorten|use)\b"
)


def test_each_refusal_says_how_to_mend_it() -> None:
    messages = {rule["message"] for _, node in schemas() for rule in node.get("x-kubernetes-validations", [])}
    assert len(messages) > 30
    assert sorted(m for m in messages if not MENDS.search(m)) == []


def test_enums_are_camel_case() -> None:
    for path, node in schemas():
        for value in node.get("enum", []):
            assert value[0].isupper(), (path, value)
            assert value.isalnum(), (path, value)


def test_recipe_has_no_default_that_a_new_release_could_change() -> None:
    recipe = [(p, n) for p, n in schemas() if p.startswith("DeepCoderRun.spec.recipe.")]
    assert recipe
    assert all("default" not in n for _, n in recipe)
    described = dict(recipe)
    assert described["DeepCoderRun.spec.recipe.groupSize"]["description"].endswith("Default: 8.")


def test_type_without_a_structural_schema_is_refused_with_its_path() -> None:
    class Bad(Spec):
        """Bad."""

        either: int | str
        """Two types."""

    class Unbounded(Spec):
        """Bad."""

        names: list[str]
        """No bound."""

    class Fine(Status):
        """Fine."""

        count: Annotated[int, Field(ge=0)] = 0
        """A number."""

    for spec, path in ((Bad, "spec.either"), (Unbounded, "spec.names")):
        with pytest.raises(SchemaError, match=path):
            custom_resource_definition(CustomResource("Bad", "bads", "b", "Bad.", spec, Fine, ()))


def test_words_that_may_be_chosen_are_explained_and_not_only_listed() -> None:
    """`kubectl explain` shows the list by itself."""
    for path, node in schemas():
        words = node.get("enum", ())
        if 1 < len(words) <= 5 and not path.endswith(".conditions[].status"):
            told = re.sub(rf"\b({'|'.join(map(re.escape, words))}|or|and)\b", "", node["description"])
            assert len(re.findall(r"\w+", told)) >= 3, f"{path}: {node['description']}"
