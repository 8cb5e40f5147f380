"""Keeps what the tests' process has loaded out of garbage collections while vLLM's engines start and end in it.

An engine freezes the whole heap once it is ready, and unfreezes it when it ends, as if the process were its own. Each
collection that vLLM then asks for, some three an engine, would go through all that the tests have loaded: measured
1.7 s each in a worker of a whole run. What an engine made is collected all the same, as it is not frozen either.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def kept_frozen() -> Iterator[None]:
    """vLLM freezes and unfreezes nothing; everybody else does."""
    with (
        mock.patch.object(gc, "freeze", _unless_vllm(gc.freeze)),
        mock.patch.object(gc, "unfreeze", _unless_vllm(gc.unfreeze)),
    ):
        yield


def _unless_vllm(call: Callable[[], None]) -> Callable[[], None]:
    def guarded() -> None:
        if not sys._getframe(1).f_globals.get("__name__", "").startswith("vllm."):
            call()

    return guarded
