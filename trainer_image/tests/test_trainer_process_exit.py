"""The trainer's process ends with the status of its record, whatever hangs in its end."""

from __future__ import annotations

import subprocess
import sys

import controller_world
import pytest

from deepcoder_contracts.exit import ExitRecord
from deepcoder_trainer.running import process_exit, runner

SECONDS = 60
"""Of no end otherwise."""
HANGS = {
    "a thread": "threading.Thread(target=threading.Event().wait).start()",
    "what a library does last": "atexit.register(threading.Event().wait)",
    "native code": "libc = ctypes.CDLL(None); libc.on_exit(libc.pause, None)",
    "native code that keeps the interpreter": "atexit.register(ctypes.PyDLL(None).pause)",
    "who writes a log": "logging.lastResort.acquire(); atexit.register(threading.Event().wait)",
}
ENDS = """
import atexit, ctypes, logging, sys, threading
from deepcoder_trainer.running import process_exit

process_exit.DUMP_SECONDS = 0.2
process_exit.run_last_at_exit()
{hang}
print("all is told")
process_exit.bound({seconds}, {status})
"""


def ended(hang: str, seconds: float, status: int | None) -> subprocess.CompletedProcess[str]:
    script = ENDS.format(hang=hang, seconds=seconds, status=status)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.mark.parametrize(
    ("hang", "seconds"), [("a thread", 0.2), ("what a library does last", 0.2), ("native code", 999)]
)
def test_process_ends_with_the_status_of_its_record_whatever_hangs(hang: str, seconds: float) -> None:
    done = ended(HANGS[hang], seconds, 75)
    assert (done.returncode, done.stdout) == (75, "all is told\n")
    said = "is ended by force; stacks:" in done.stderr and "threading.py" in done.stderr
    assert said is (hang != "native code"), done.stderr


def test_process_ends_though_whoever_hangs_keeps_others_from_saying_it() -> None:
    done = ended(HANGS["who writes a log"], 0.2, 75)
    assert (done.returncode, done.stdout) == (75, "all is told\n")


def test_process_ends_as_a_crash_does_though_native_code_keeps_the_interpreter_to_itself() -> None:
    done = ended(HANGS["native code that keeps the interpreter"], 0.2, 75)
    assert (done.returncode, done.stdout) == (process_exit.CRASHED, "all is told\n")


def test_process_without_a_record_ends_by_itself_as_python_does_and_in_time() -> None:
    assert ended("atexit.register(print, 'the end')", 999, None).stdout == "all is told\nthe end\n"
    assert ended(HANGS["a thread"], 0.2, None).returncode == process_exit.CRASHED


@pytest.mark.parametrize("how", ["a record", "an error"])
async def test_attempt_that_nobody_stopped_bounds_the_process_however_it_ends(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[tuple[float, int | None]] = []

    class Attempt:
        def __init__(self, *_: object) -> None: ...

        async def run(self) -> ExitRecord:
            if how == "an error":
                raise OSError("no space is left")
            return ExitRecord(code=1, reason="LearnerLost")

    monkeypatch.setattr(runner, "Attempt", Attempt)
    monkeypatch.setattr(runner, "stop_on_signals", lambda *_: None)
    monkeypatch.setattr(process_exit, "bound", lambda *given: bounds.append(given))
    config = controller_world.stage_config(1)
    if how == "an error":
        with pytest.raises(OSError, match="no space"):
            await runner.run(config, None, lambda _: ())
    else:
        await runner.run(config, None, lambda _: ())
    assert bounds == [(runner.UNHURRIED_SECONDS, None if how == "an error" else 1)]
