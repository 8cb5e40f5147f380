"""What the live trainer prints, read by a command within its head: also from one that does not answer."""

from __future__ import annotations

from typing import Any

import pytest

from deepcoder_client import driver
from deepcoder_client.driver import driver_lines
from deepcoder_client.errors import Unreachable


class Connection:
    """To a cluster in which everything is allowed."""

    host, timeout, configuration = "https://cluster", 1.0, None

    def lacking(self, *_: Any) -> None:
        return None

    def socket_headers(self) -> list[str]:
        return []


class Stuck:
    """A stream of a node that has stopped: open, and nothing comes."""

    closed = False

    def __init__(self, *_: Any) -> None:
        pass

    def is_open(self) -> bool:
        return True

    def update(self, timeout: float) -> None:
        pass

    def peek_stdout(self) -> bool:
        return False

    def read_stdout(self) -> str:
        return ""

    peek_stderr, read_stderr = peek_stdout, read_stdout

    def close(self) -> None:
        Stuck.closed = True


def test_head_that_does_not_answer_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "WSClient", Stuck)
    monkeypatch.setattr(driver, "_READ_SECONDS", 0.05)
    connection: Any = Connection()
    with pytest.raises(Unreachable, match="pod demo-head has not said all"):
        list(driver_lines(connection, "team", "demo-head", tail=10, follow=False))
    assert Stuck.closed
