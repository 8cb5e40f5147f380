"""pyarrow that does not import pandas, which takes half a second of CPU time.

Where pandas is installed, pyarrow imports it as soon as it makes an array of Python objects, to recognize pandas'
objects among them. The trainer has none. pyarrow tries once per process, so it is made to try here, where it finds no
pandas. What needs pandas later, such as `to_pandas`, still imports it. Nothing changes if pandas is imported already.
"""

from __future__ import annotations

import sys

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["pa", "pq"]


class _NoPandas:
    """An import hook that finds no pandas."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pyarrow is not to import pandas", name=name)


if "pandas" not in sys.modules:
    sys.meta_path.insert(0, _NoPandas)
    try:
        pa.array([""])
    finally:
        sys.meta_path.remove(_NoPandas)
