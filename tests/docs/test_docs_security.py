"""docs/security.md names tests that exist, one for each line, and defaults that are the defaults."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcoder_contracts.api.run_spec import RunSpec
from deepcoder_contracts.api.sandboxpool import SandboxPoolSpec
from deepcoder_operator.config import OperatorConfig
from deepcoder_sandbox import cli
from deepcoder_web.config import WebConfig

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("|---")
]
DEFENCES = [row for row in ROWS if len(row) == 3 and not row[2].startswith("the test that")]
NAMED = sorted({name for row in DEFENCES for name in re.findall(r"`(test_\w+\.py::\w+)`", row[2])})
DEFAULTS = [row for row in ROWS if len(row) == 4 and row[0] != "where"]


@functools.cache
def files() -> dict[str, Path]:
    """Files of tests, whose names are unique."""
    return {path.name: path for folder in ROOT.glob("*/tests") for path in folder.rglob("test_*.py")} | {
        path.name: path for path in (ROOT / "tests").rglob("test_*.py")
    }


@functools.cache
def names_in(file: str) -> frozenset[str]:
    """Names of the tests of the one file of this name."""
    tree = ast.parse(files()[file].read_text())
    return frozenset(n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_the_page_names_exists(name: str) -> None:
    file, _, test = name.partition("::")
    assert test in names_in(file)


def test_every_line_names_a_test() -> None:
    assert len(DEFENCES) > 50
    assert not [row[0] for row in DEFENCES if "test_" not in row[2]]


def test_every_actor_has_a_part_that_says_what_is_not_defended_or_why_all_is() -> None:
    parts = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    actors = [part for part in parts if "| the test that tries it |" in part]
    assert len(actors) >= 10
    without = {part.splitlines()[0] for part in actors if "**Not defended" not in part}
    assert without == {"A stolen token", "Whoever reads logs, bundles or images"}


@pytest.mark.parametrize("row", DEFAULTS, ids=lambda row: f"{row[0]} {row[1]}".replace("`", ""))
def test_a_default_is_the_one_that_the_page_names(row: list[str]) -> None:
    where, setting, default, why = (cell.replace("`", "") for cell in row)
    assert why
    assert shown(found(where, setting)) == default


def found(where: str, setting: str) -> Any:
    """A default, from where it is decided."""
    if where == "chart":
        value = yaml.safe_load((ROOT / "helm" / "deepcoder-operator" / "values.yaml").read_text())
        return functools.reduce(lambda v, key: v[key], setting.split("."), value)
    if where == "deepcoder-sandbox serve":
        given = cli._parser().parse_args(["serve", "--token-file", "/t"])
        return getattr(given, setting.removeprefix("--").replace("-", "_"))
    models = {"SandboxPool": SandboxPoolSpec, "DeepCoderRun": RunSpec, "operator": OperatorConfig}
    model: Any = models.get(where, WebConfig)
    *path, last = (re.sub(r"[A-Z]", lambda m: f"_{m[0].lower()}", key) for key in setting.split("."))
    for key in path:
        model = model.model_fields[key].annotation
    return model.model_fields[last].get_default(call_default_factory=True)


def shown(value: Any) -> str:
    """As the page writes it."""
    if value is None:
        return "none"
    return {True: "true", False: "false", "": '""'}.get(value, str(value)) if not isinstance(value, list) else "[]"
