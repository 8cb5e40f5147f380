"""A process of the trainer that writes Parquet does not import pandas, and can still use it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
import pyarrow.parquet
from deepcoder_trainer.evaluation.samples import write_rows

path = Path(sys.argv[1])
write_rows(path, [])
print("pandas" in sys.modules)
print(len(pyarrow.parquet.read_table(path).to_pandas()))
"""


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="pandas is not installed")
def test_pandas_is_imported_only_where_it_is_used(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "samples.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["False", "0"], done.stderr
