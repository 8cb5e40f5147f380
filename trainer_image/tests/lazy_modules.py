"""Modules that take seconds to load, for tests that name them at their top.

Each worker collects all tests but runs only some of them. With `torch = LazyModule("torch")`
a test file loads torch only at its first use. It imports names from such a module within the function that uses them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

from deepcoder_trainer.heavy_imports import heavy_imports

_ASKED = ("__bases__", "__test__", "__wrapped__", "_mock_name")
"""Of all that it finds in a test file pytest asks for these, while it collects."""
LOADED = pytest.StashKey[set[str]]()
"""Packages that were there when the tests had been collected."""


class LazyModule(ModuleType):
    """Another name of a module, which is loaded when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if self.__name__ not in sys.modules:
            if name in _ASKED:
                raise AttributeError(name)
            with heavy_imports():
                import_module(self.__name__)
        return getattr(sys.modules[self.__name__], name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError(f"nobody else would see it: import {self.__name__} in the test that sets {name}")
