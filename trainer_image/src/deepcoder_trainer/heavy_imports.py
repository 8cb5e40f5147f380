"""Imports torch, transformers and vLLM with garbage collection off, and excludes their objects from later collections.

The objects that these modules make stay until the process ends. Scanning them again and again takes a fifth of the
import time, and later a third of a second each time that vLLM requests a collection while an engine starts. Nothing
here fails, and collection is re-enabled afterwards if it was enabled before, also after an exception.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from deepcoder_trainer.transformers_import import fast_transformers_import


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Context for imports of large libraries, in the process that goes on to use them."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with fast_transformers_import():
            yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
