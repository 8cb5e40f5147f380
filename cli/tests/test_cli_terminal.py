"""What programs, models and other people have written cannot steer the terminal that shows it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable

import pytest
import yaml

from deepcoder_cli import output
from deepcoder_cli.terminal import printable, program_output

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
TITLE = "\x1b]0;owned\x1b\\"
CURSOR = "\x1b[1A\x1b[2K"
C1 = "\x9b2J"
BIDI = "\u202egnp.exe"
HOSTILE = (CLIPBOARD, TITLE, CURSOR, C1, BIDI, "\x7f", "\x08" * 9, "\x0e")

Terminal = Callable[[bool], io.StringIO]


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Takes what is printed, as a terminal or as a pipe."""

    def made(terminal: bool) -> io.StringIO:
        taken = io.StringIO()
        monkeypatch.setattr(taken, "isatty", lambda: terminal)
        monkeypatch.setattr("sys.stdout", taken)
        return taken

    return made


def obeyed(text: str) -> list[str]:
    """Characters that a terminal acts on, or does not show."""
    return [c for c in text if not c.isprintable() and c not in "\n\t"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_log_cannot_steer_a_terminal(out: Terminal, text: str) -> None:
    taken = out(True)
    program_output(f"before {text} after\n")
    assert obeyed(taken.getvalue()) == []
    assert taken.getvalue().startswith("before \\")
    assert taken.getvalue().endswith(" after\n")


@pytest.mark.parametrize("text", [*HOSTILE, "\x1b[31mred\x1b[0m", "a\r\n", "10%\r20%\n"])
def test_a_log_that_goes_to_no_terminal_is_passed_on_as_it_is(out: Terminal, text: str) -> None:
    taken = out(False)
    program_output(text)
    assert taken.getvalue() == text


def test_a_terminal_shows_a_coloured_log_without_its_colours_and_progress_line_by_line(out: Terminal) -> None:
    taken = out(True)
    program_output("\x1b[1;31mred\x1b[0m é 日本\u3000👩\u200d🔬\r\n 10%\r 20%\n")
    assert taken.getvalue() == "red é 日本\u3000👩\u200d🔬\n 10%\n 20%\n"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("form", ["json", "yaml"])
def test_documents_keep_every_character_and_print_none_that_a_terminal_obeys(
    out: Terminal, terminal: bool, form: str
) -> None:
    value = {"text": "".join(HOSTILE) + "é\u3000\U000e0041", CURSOR: ["\\", '"']}
    taken = out(terminal)
    output.document(value, form)
    written = taken.getvalue()
    assert (json.loads(written) if form == "json" else yaml.safe_load(written)) == value
    assert obeyed(written.replace("\u3000", "")) == []
    if form == "json":
        assert "é\u3000" in written


def test_yaml_shows_letters_of_every_script_where_nothing_has_to_be_escaped(out: Terminal) -> None:
    taken = out(True)
    output.document({"text": "é 日本 👩\u200d🔬"}, "yaml")
    assert taken.getvalue() == "text: é 日本 👩\u200d🔬\n"


def test_what_is_shown_in_place_of_a_character_names_it() -> None:
    assert printable("\x1b\x9b\u202e\ud800 \xa0") == "\\x1b\\x9b\\u202e\\ud800 \xa0"


@pytest.mark.parametrize("long", [0, 1])
def test_a_table_in_a_pipe_has_a_line_for_each_row_however_long_its_values_are(out: Terminal, long: int) -> None:
    """A list of a hundred failed problems, or a URI, is a value that a program copies whole."""
    taken = out(False)
    rows = [("a", "x" * 900, "日" * 300), ("b" * 7, None, "y z")]
    output.table(("name", "value", "uri"), rows, long=long)
    head, first, second = taken.getvalue().splitlines()
    assert head.split() == ["NAME", "VALUE", "URI"]
    assert first.split() == list(rows[0])
    assert second.split() == ["b" * 7, "–", "y", "z"]
    output.table(("name", "value"), [])
    assert taken.getvalue().splitlines()[-1] == "NAME   VALUE"


def test_a_figure_that_is_none_is_null_to_programs_and_a_dash_to_people() -> None:
    assert output.plain({"a": [math.nan, math.inf, 0.5]}) == {"a": [None, None, 0.5]}
    assert [output.cell(value) for value in (None, "", True, False, 0.0, 0.123456)] == [
        "–",
        "–",
        "yes",
        "no",
        "0",
        "0.1235",
    ]
