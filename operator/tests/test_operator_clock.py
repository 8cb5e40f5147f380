"""The operator's clock goes on steadily, whatever is done to the node's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from deepcoder_operator.clock import SteadyClock


@dataclass
class Node:
    """A node's clocks."""

    wall: float = 1_000_000.0
    boot: float = 50.0

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.boot += seconds


def clock_of(node: Node) -> SteadyClock:
    clock = SteadyClock(lambda: node.wall, lambda: node.boot)
    clock.hold()
    return clock


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_until_it_is_held_it_is_the_wall_clock_and_may_step(jump: float) -> None:
    """A node that boots asks for the time when the operator's process may have begun."""
    node = Node()
    clock = SteadyClock(lambda: node.wall, lambda: node.boot)
    node.passes(10)
    node.wall += jump
    assert clock.time() == node.wall
    node.passes(5)
    clock.hold()
    assert clock.time() == node.wall
    node.wall += jump
    node.passes(10)
    assert clock.time() == pytest.approx(node.wall - jump, abs=0.2)


def test_it_is_the_wall_clock_where_nobody_sets_that() -> None:
    node = Node()
    clock = clock_of(node)
    for _ in range(100):
        node.passes(7.5)
        assert clock.time() == pytest.approx(node.wall)


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_jump_of_the_wall_clock_passes_no_deadline_and_puts_none_off(
    jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node()
    clock = clock_of(node)
    began = clock.time()
    node.wall += jump
    node.passes(10)
    assert clock.time() - began == pytest.approx(10, rel=0.02)
    node.passes(600)
    assert clock.time() - began == pytest.approx(610, rel=0.02)
    assert [r.levelname for r in caplog.records] == ["WARNING"], "told once"


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_it_comes_back_to_the_wall_clock_in_time_and_never_goes_back(jump: float) -> None:
    node = Node()
    clock = clock_of(node)
    node.wall += jump
    last = clock.time()
    for _ in range(4000):
        node.passes(100)
        assert clock.time() > last
        last = clock.time()
    assert last == pytest.approx(node.wall, abs=0.001)


def test_statuses_get_whole_seconds() -> None:
    node = Node(wall=1_000_000.9)
    assert clock_of(node).now().timestamp() == 1_000_000
