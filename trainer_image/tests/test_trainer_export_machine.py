"""What an export takes of a machine's memory, and leaves on its disk however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import export_world
import pytest

from deepcoder_trainer.export.workdir import workdir


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An export of a run below tmp_path/run."""
    return export_world.commit(export_world.make_model(tmp_path / "model"), tmp_path / "run")


_ENDED = """
import os, signal, sys
from pathlib import Path
from deepcoder_trainer.export.workdir import workdir
from deepcoder_trainer.modelconfig import model_files

with workdir(Path(sys.argv[1])) as work:
    (work / "weights").write_bytes(b"0" * 1000)
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    signal.pause()
"""


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_what_an_export_that_was_ended_leaves_goes_with_it_or_with_the_next(end: str, tmp_path: Path) -> None:
    output = tmp_path / "results" / "out"
    ended = subprocess.run([sys.executable, "-c", _ENDED, str(output), end], timeout=60, check=False)
    left = list(output.parent.iterdir())
    if end == "SIGTERM":
        assert (ended.returncode, left) == (128 + signal.SIGTERM, [])
        return
    [folder] = left
    assert (folder / "weights").stat().st_size == 1000
    with workdir(output) as first:
        assert not folder.exists()
        with workdir(output) as second:
            assert first.is_dir(), "that of an export that goes on stays"
            assert second.is_dir()
    assert list(output.parent.iterdir()) == []


_BIG = """
import json
import sys
from pathlib import Path
from safetensors import safe_open
from deepcoder_contracts.manifest import FileEntry
from deepcoder_contracts.recipe import Precision
from deepcoder_trainer.export import prompts
from deepcoder_trainer.export.formats import Format
from deepcoder_trainer.export.stage import StoredPair, stored_difference
from deepcoder_trainer.heavy_imports import heavy_imports
with heavy_imports():
    from deepcoder_trainer.export.run import Order, export

prompts.MOST_TOKENS = 8  # weights are what takes memory here; most of the time would be their products with the prompts

def memory(which):
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[which].split()[0]) * 1024

# Everything is imported before the large model is touched.
export(Order("file://" + sys.argv[2], "file://" + sys.argv[3] + "/small", Format(sys.argv[4])), lambda text: None)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
order = Order("file://" + sys.argv[1], "file://" + sys.argv[3] + "/many", Format(sys.argv[4]), shard_bytes=8 << 20)
export(order, lambda text: None)
print(memory("VmHWM") - before)
"""

# The same files as a checkpoint's, and what was exported of them, in storage: as a stage's end compares them.
_STORED = """
source, made = Path(sys.argv[1]), Path(sys.argv[3]) / "many"
chunks = {}
for path in source.glob("*.safetensors"):
    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            shape = file.get_slice(name).get_shape()
            chunk = {"offsets": [0] * len(shape), "sizes": shape, "file": path.name, "key": name}
            chunks["model." + name] = {"dtype": "torch.bfloat16", "size": shape, "chunks": [chunk]}
(source / "learner").mkdir()
for path in source.glob("*.safetensors"):
    path.rename(source / "learner" / path.name)
(source / "learner/metadata.json").write_text(json.dumps({"tensors": chunks}))

def files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "MANIFEST.json"]
    return [FileEntry(path=str(p.relative_to(folder)), size=p.stat().st_size, sha256="0" * 64) for p in paths]

pair = StoredPair(f"file://{source}", files(source), f"file://{made}", files(made), Precision.BFLOAT16, None, None)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
found = stored_difference(pair, made)
assert found.max_abs == 0, found
print(memory("VmHWM") - before)
"""


@pytest.mark.parametrize("form", ["huggingface", pytest.param("fp8", marks=pytest.mark.long)])
@pytest.mark.early
def test_a_model_of_many_shards_is_exported_with_a_few_in_memory(form: str, exported: Path, tmp_path: Path) -> None:
    large = export_world.large(tmp_path / "large", layers=12)
    size = sum(f.stat().st_size for f in large.glob("*.safetensors"))
    assert size > 11 * (8 << 20)
    script = _BIG + (_STORED if form == "huggingface" else "")
    arguments = [str(large), str(exported), str(tmp_path), form]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        # What is freed goes back at once: what is measured is what is held, not what the allocator keeps for later.
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # Shards that are being written, twice (the library makes bytes of them), and a layer in float32. Of stored ones a
    # layer in float32, and one that is on its way, twice while it arrives.
    for peak in map(int, done.stdout.split()):
        assert peak < 5 * (8 << 20), f"{peak >> 20} MiB more, of a model of {size >> 20} MiB"
    shutil.rmtree(tmp_path / "large")
