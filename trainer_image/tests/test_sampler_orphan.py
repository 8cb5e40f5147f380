"""What vLLM starts for a sampler ends with the sampler's process, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from deepcoder_trainer.sampler.engine import CPU_ENVIRONMENT, ENVIRONMENT

SECONDS = 60.0

PARENT = """
import multiprocessing, sys, threading, time
from deepcoder_trainer.sampler.orphan import end_with_parent

def child():
    end_with_parent()
    end_with_parent()
    print(threading.active_count(), flush=True)
    time.sleep(1000)

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
    process.start()
    print(process.pid, flush=True)
    time.sleep(1000)
"""

SAMPLER = """
import asyncio, sys, time
from deepcoder_trainer.sampler.engine import engine_arguments, start_async_engine
from deepcoder_trainer.sampler.settings import EngineSettings

async def main():
    settings = EngineSettings("float32", 128, 32, 2048, 64 << 20)
    engine = await start_async_engine(engine_arguments(sys.argv[1], settings))
    print("started", flush=True)
    time.sleep(1000)  # as an engine's front end that hangs

if __name__ == "__main__":
    asyncio.run(main())
"""


def started(tmp_path: Path, text: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    program = tmp_path / "program.py"
    program.write_text(text)
    return subprocess.Popen(
        [sys.executable, str(program), *arguments], stdout=subprocess.PIPE, text=True, env=os.environ | (env or {})
    )


def killed(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Kill a process; its descendants that outlive it for long."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=SECONDS)
    for child in alive:
        child.kill()
    return alive


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_child_ends_with_its_killed_parent(tmp_path: Path, method: str) -> None:
    process = started(tmp_path, PARENT, method)
    assert process.stdout is not None
    told = sorted(int(process.stdout.readline()) for _ in range(2))
    assert told[0] == 2, "one thread watches, however often it was asked for"
    assert psutil.pid_exists(told[1])
    assert killed(process) == []


def test_process_that_multiprocessing_did_not_start_watches_nobody(tmp_path: Path) -> None:
    text = "import threading\nfrom deepcoder_trainer.sampler.orphan import end_with_parent\nend_with_parent()\n"
    process = started(tmp_path, text + "print(threading.active_count())")
    assert process.communicate(timeout=SECONDS)[0] == "1\n"


@pytest.mark.long
@pytest.mark.vllm
def test_engine_core_ends_with_its_killed_sampler(tmp_path: Path, make_coder_model: Callable[..., Any]) -> None:
    process = started(tmp_path, SAMPLER, str(make_coder_model()), env={**ENVIRONMENT, **CPU_ENVIRONMENT})
    assert process.stdout is not None
    while "started" not in (line := process.stdout.readline()):
        assert line, "the engine did not start"
    assert any("EngineCore" in " ".join(child.cmdline()) for child in psutil.Process(process.pid).children())
    assert killed(process) == []
