"""docs/state-machine.md shows what the planner does: each of its arrows, and no other."""

from __future__ import annotations

import pytest
from state_walk import GONE, PAGE, Edges, rendered, walk, with_diagram

from deepcoder_contracts.api.run_status import Phase

pytestmark = pytest.mark.early


@pytest.fixture(scope="module")
def edges() -> Edges:
    return walk()


def test_page_shows_what_the_planner_does(edges: Edges) -> None:
    page = PAGE.read_text()
    mend = "run .venv/bin/python operator/tests/state_walk.py --write, and read what has changed"
    assert with_diagram(page, rendered(edges)) == page, mend


def test_each_phase_is_reached_and_told(edges: Edges) -> None:
    assert {b for _, b in edges} >= {*map(str, Phase), GONE}
    page = PAGE.read_text().partition("<!-- begin")[0]
    assert [p for p in Phase if f"| {p} |" not in page] == []


def test_ends_are_absorbing(edges: Edges) -> None:
    assert {b for a, b in edges if a in (Phase.COMPLETE, Phase.FAILED)} == {GONE}


def test_nothing_runs_that_was_not_admitted_and_started(edges: Edges) -> None:
    assert {a for a, b in edges if b == Phase.RUNNING} == {Phase.STARTING}
    assert {a for a, b in edges if b == Phase.STARTING} == {Phase.QUEUED}
