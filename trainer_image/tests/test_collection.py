"""Each of four workers collects all tests and runs a quarter of them: what takes seconds to load is loaded in tests."""

from __future__ import annotations

import pytest
from lazy_modules import LOADED

LARGE = {"torch", "transformers", "vllm", "wandb", "tensorboard", "datasets", "sklearn", "matplotlib"}


def test_to_collect_tests_loads_nothing_that_takes_seconds(request: pytest.FixtureRequest) -> None:
    assert request.config.stash[LOADED] & LARGE == set(), "import it in a function or a fixture, or see lazy_modules.py"
