"""Commands of the how-tos are commands that there are: options that parse, values that the chart has, files that exist.

What acts on a cluster is not carried out here; the demo and the end-to-end tests do that.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from deepcoder_cli.app import COMMANDS, app
from devcluster import tools
from devcluster.config import cache_root

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted((DOCS / "howto").glob("*.md")), DOCS / "dashboard.md", DOCS / "monitoring.md", ROOT / "README.md"]
_BLOCK = re.compile(r"^```(?:\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Words of each command of a page, lines that go on joined."""
    found = []
    for block in _BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            text = line.removeprefix("$ ").strip()
            if re.match(r"(kubectl|helm|deepcoder-trainer|\.venv/bin/deepcoder-trainer) ", text):
                found.append(shlex.split(text, comments=True))
    return found


ALL = [(page, words) for page in PAGES for words in commands(page)]


def of(program: str) -> list[tuple[Path, list[str]]]:
    return [(page, words) for page, words in ALL if " ".join(words).startswith(program)]


def named(case: object) -> str:
    return case.name if isinstance(case, Path) else " ".join(case)[:60] if isinstance(case, list) else str(case)


@pytest.mark.parametrize(("page", "words"), of("kubectl deepcoder"), ids=named)
def test_the_command_line_takes_it(page: Path, words: list[str]) -> None:
    name, *arguments = words[2:]
    assert name in COMMANDS, f"{page.name}: no command {name}"
    # Commands keep the help option of the first context that they are in: it is the program's own.
    root = click.Context(app, **app.context_settings)
    command = app.get_command(root, name)
    assert command is not None
    command.make_context(name, arguments, parent=root).close()


@pytest.mark.parametrize(("page", "words"), of("helm"), ids=named)
def test_the_chart_has_these_values(page: Path, words: list[str]) -> None:
    if "helm/deepcoder-operator" not in words:
        return
    settings = [
        w for i, w in enumerate(words) if words[i - 1] in ("--set", "--set-string") or w in ("--set", "--set-string")
    ]
    helm = tools.fetch(cache_root()) / "helm"
    done = subprocess.run(
        [helm, "template", "deepcoder", ROOT / "helm" / "deepcoder-operator", *settings],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("page", "words"), of("kubectl apply -f"), ids=named)
def test_the_manifest_is_there(page: Path, words: list[str]) -> None:
    path = words[words.index("-f") + 1]
    assert (ROOT / path).is_file(), f"{page.name}: {path}"


@pytest.mark.parametrize(("page", "words"), [*of("deepcoder-trainer"), *of(".venv/bin/deepcoder-trainer")], ids=named)
def test_the_trainer_has_these_options(page: Path, words: list[str]) -> None:
    _, name, *arguments = words
    done = subprocess.run(
        [sys.executable, "-m", "deepcoder_trainer", name, "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for option in (a.partition("=")[0] for a in arguments if a.startswith("--")):
        assert option in done.stdout, f"{page.name}: {name} has no {option}"
