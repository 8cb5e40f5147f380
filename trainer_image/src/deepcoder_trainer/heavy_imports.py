"""Loading torch, transformers and vLLM without looking for garbage in them, meanwhile or later.

What their modules make stays for as long as the process does; walking over all of it again and again, whenever some
more has been made, takes a fifth of the time that loading takes, and each time that vLLM asks for a collection while an
engine starts, a third of a second. Nothing fails here, and what was on before is on again afterwards, whatever happens
meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from deepcoder_trainer.transformers_import import fast_transformers_import


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Around the imports of what is large, in the process that goes on to use it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with fast_transformers_import():
            yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
