"""Generates docs/programs.md, the reference of the programs in the images, from their help.

`python scripts/program_reference.py` writes the page; `--check` fails if it differs. `kubectl deepcoder` writes its own
page.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from typing import NamedTuple
from unittest import mock

import pages

from deepcoder_operator.__main__ import main as operator
from deepcoder_sandbox.cli import run as sandbox
from deepcoder_trainer.__main__ import main as trainer
from deepcoder_web.__main__ import main as web

PAGE = pages.DOCS / "programs.md"
COLUMNS = "110"


class Program(NamedTuple):
    """A program, with an introduction to its help."""

    name: str
    main: Callable[[], object]
    words: str


PROGRAMS = (
    Program(
        "deepcoder-trainer",
        trainer,
        "In the trainer's image, and on a researcher's machine ([data](data.md), [evaluation](evaluation.md), "
        "[export](export.md)).",
    ),
    Program("deepcoder-sandbox", lambda: sandbox(sys.argv[1:]), "The judge, in its own image ([the judge](judge.md))."),
    Program("deepcoder-operator", operator, "In the operator's image ([architecture](architecture.md))."),
    Program("deepcoder-web", web, "The dashboard, in the operator's image ([the dashboard](dashboard.md))."),
)


def page() -> str:
    """The text of the page."""
    lines = [
        "# Programs",
        "",
        "Generated from the programs' help by `make generate`. [The command line](cli.md) has `kubectl deepcoder`,",
        "[Configuration files](config.md) has the files that `--config` names.",
    ]
    for program in PROGRAMS:
        text = _help(program, [])
        lines += ["", f"## {program.name}", "", program.words, "", "```text", text, "```"]
        for command in _commands(text):
            lines += ["", f"### {program.name} {command}", "", "```text", _help(program, [command]), "```"]
    return pages.joined(lines)


def _help(program: Program, words: list[str]) -> str:
    out = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [program.name, *words, "--help"]),
        mock.patch.dict(os.environ, {"COLUMNS": COLUMNS}),
        redirect_stdout(out),
        suppress(SystemExit),
    ):
        program.main()
    return out.getvalue().rstrip()


def _commands(text: str) -> list[str]:
    """The commands in a program's usage."""
    found = re.search(r"\{([\w,-]+)\}", text)
    return found[1].split(",") if found else []


if __name__ == "__main__":
    sys.exit(pages.main(PAGE, page(), __doc__))
