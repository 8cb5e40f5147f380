"""An import without a declaration, and a declaration without an import, are found."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "scripts" / "dependencies.py"


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        (["PyYAML>=6", "deepcoder-client"], []),
        (["deepcoder-client"], ["imports yaml, which cli/pyproject.toml does not declare (pyyaml)"]),
        (["PyYAML", "deepcoder-client", "rich>=14"], ["declares rich, which nothing in it imports: remove it"]),
    ],
)
def test_imports_and_declarations_are_held_against_each_other(
    declared: list[str], found: list[str], tmp_path: Path
) -> None:
    source = tmp_path / "cli" / "src" / "deepcoder_cli" / "app.py"
    source.parent.mkdir(parents=True)
    source.write_text(
        "from __future__ import annotations\nimport json\nimport yaml\nfrom deepcoder_client import client\n"
    )
    listed = ", ".join(f'"{name}"' for name in declared)
    (tmp_path / "cli" / "pyproject.toml").write_text(f'[project]\nname = "deepcoder-cli"\ndependencies = [{listed}]\n')
    script = runpy.run_path(str(PATH))
    scope = script["_imports"].__globals__
    scope["ROOT"], scope["PARTS"] = tmp_path, ("cli",)
    problems = list(script["_imports"]())
    assert len(problems) == len(found)
    assert all(problem.endswith(end) for problem, end in zip(problems, found, strict=True))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("| `{name}` | why | | {version} | | MIT |", None),
        ("| `{name}` | why | | 0.0.1 | | MIT |", "says that {name} is pinned to 0.0.1, which it is not"),
        ("", "has no line for {name}: say why it is there"),
    ],
)
@pytest.mark.parametrize("name", ["pydantic", "preact", "etcd"])
def test_a_line_of_the_page_has_the_version_that_is_pinned(
    name: str, row: str, told: str | None, tmp_path: Path
) -> None:
    script = runpy.run_path(str(PATH))
    scope = script["_rows"].__globals__
    page = scope["PAGE"].read_text()
    (version,) = re.findall(rf"^\| `{name}` \|[^|]*\|[^|]*\| ([^| ]+)", page, re.MULTILINE)
    lines = [line for line in page.splitlines() if not line.startswith(f"| `{name}` |")]
    scope["ROOT"], scope["PAGE"] = tmp_path, tmp_path / "docs" / "dependencies.md"
    for part in ("constraints", "devcluster", "web", *scope["PARTS"]):
        (tmp_path / part).exists() or (tmp_path / part).symlink_to(PATH.parents[1] / part)
    scope["PAGE"].parent.mkdir()
    scope["PAGE"].write_text("\n".join([*lines, row.format(name=name, version=version)]) + "\n")
    said = list(script["_rows"]())
    assert [text.partition(" ")[2] for text in said] == ([told.format(name=name)] if told else [])
