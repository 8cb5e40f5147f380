"""Runs a program with a deadline and keeps its output, so that a failure shows its cause.

Fails with `CommandFailed`, which carries the last lines of the output.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_SHOWN_LINES = 30
# When the parent dies, the kernel kills the first process of the process namespace, and with it everything in there.
_CONTAINED = ("setpriv", "--pdeathsig=KILL", "unshare", "--pid", "--mount-proc", "--fork", "--kill-child", "--")
_running: set[subprocess.Popen[bytes]] = set()


class CommandFailed(RuntimeError):
    """A program ended badly or ran past its deadline."""


def run(
    arguments: Sequence[str | Path],
    *,
    deadline: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    log: Path | None = None,
    contained: bool = False,
) -> str:
    """Run and return stdout; `env` is added to the environment, `log` receives all output as it comes.

    The program gets its own process group, which is killed at the deadline (seconds) or when this process is
    interrupted. `contained` is for long programs that start others, and needs root: the kernel ends all of them
    with this process, however that ends, so a killed build leaves no compiler behind.
    """
    words = [str(argument) for argument in arguments]
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") if log is not None else open(os.devnull, "wb") as sink:  # noqa: PTH123
        process = subprocess.Popen(
            [*(_CONTAINED if contained else ()), *words],
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=sink if log is not None else subprocess.PIPE,
            stderr=subprocess.STDOUT if log is not None else subprocess.PIPE,
            process_group=0,
        )
        _running.add(process)
        try:
            output, errors = process.communicate(stdin, timeout=deadline)
        except BaseException as reason:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(reason, subprocess.TimeoutExpired):
                raise CommandFailed(f"{words[0]}: not done after {deadline:.0f} s: {' '.join(words)}") from None
            raise
        finally:
            _running.discard(process)
    if process.returncode != 0:
        said = log.read_text(errors="replace") if log is not None else (errors + output).decode(errors="replace")
        shown = "\n".join(said.strip().splitlines()[-_SHOWN_LINES:])
        where = f" (all of it: {log})" if log is not None else ""
        raise CommandFailed(f"{' '.join(words)}: exit code {process.returncode}{where}\n{shown}")
    return output.decode(errors="replace") if output is not None else ""


def kill_all() -> None:
    """Kill every program that any thread is running now, so that an interrupted tool ends at once."""
    for process in list(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
