"""How far a curation is: a bar with the time that is left on a terminal, lines with it elsewhere."""

from __future__ import annotations

import io
import logging
import re
import sys
import time

import pytest
from rich.progress import Progress

from deepcoder_trainer.curation.progress import Terminal, _Bar


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_with_what_is_done_and_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with Terminal() as terminal:
        phase = terminal.phase("verify", 4)
        for _ in range(4):
            phase.step()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"verify .*4/4 elapsed \d:\d\d:\d\d left 0:00:00", shown), shown


def test_lines_say_the_time_that_is_left_by_what_came_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    caplog.set_level(logging.INFO)
    phase = _Bar(Progress(disable=True), "verify", 1000, lines=True)
    clock[0] = 30.0
    phase.reach(900)  # a journal had them
    clock[0] = 45.0
    phase.step()
    clock[0] = 60.0
    phase.step()
    assert [record.getMessage() for record in caplog.records] == [
        "verify: 900 of 1000, about 3 s left",
        "verify: 902 of 1000, about 1470 s left",
    ]
