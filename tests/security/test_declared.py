"""An import without a declaration, and a declaration without an import, are found."""

from __future__ import annotations

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
