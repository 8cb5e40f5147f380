"""What holds for the tests of all parts: how hypothesis is set, and that every worker collects the same tests.

Hypothesis fails an example that takes over 200 ms; how long something takes is measured in `benchmarks/`, never here.
A set has another order in every process, and workers that collect in different orders run nothing at all, in some runs
and not in others: a test that is parametrized by one is refused at once.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Refuse a test whose parameters have no order."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        values = mark.args[1] if len(mark.args) > 1 else mark.kwargs.get("argvalues")
        if isinstance(values, set | frozenset):
            raise pytest.UsageError(f"{metafunc.definition.nodeid}: parametrized by a set, which has no order: sort it")
