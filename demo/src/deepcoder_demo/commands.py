"""Runs other programs with a deadline. Output is shown or kept, and a failure shows what the program printed.

The demo uses devcluster, helm, kubectl, the trainer and the command line only as a user would, so what works here also
works by hand. A program that exceeds its deadline, or that runs when the demo is interrupted, is asked to end before it
is killed, because devcluster and the trainer then end what they started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

GRACE_SECONDS = 30.0
LOOK_SECONDS = 15.0
"""Interval of checking whether a program is still worth waiting for."""

_running: set[subprocess.Popen[str]] = set()


class CommandFailed(Exception):
    """A command ended with an error or ran past its deadline; `status` is its exit status if it had one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class GivenUp(CommandFailed):
    """A command that would have waited for something that cannot happen; the message says what."""


def run(
    command: Sequence[str | Path],
    *,
    seconds: float,
    show: bool = False,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    in_vain: Callable[[], str | None] = lambda: None,
) -> str:
    """Run a command and return its standard output ('' when shown); raises CommandFailed with the last lines.

    `in_vain` returns None, or the reason to stop waiting, which raises GivenUp.
    """
    words = [str(word) for word in command]
    try:
        process = subprocess.Popen(
            words,
            env={**os.environ, **(env or {})},
            stdin=None if stdin is None else subprocess.PIPE,
            stdout=None if show else subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError as error:
        raise CommandFailed(f"{words[0]} is not installed, or not on PATH") from error
    _running.add(process)
    try:
        output, errors = _waited_for(process, stdin, time.monotonic() + seconds, in_vain)
    except subprocess.TimeoutExpired as error:
        _end(process)
        raise CommandFailed(f"`{' '.join(words)}` did not end within {seconds:.0f} s") from error
    except BaseException:
        _end(process)
        raise
    finally:
        _running.discard(process)
    if process.returncode != 0:
        said = "" if show else ":\n" + "\n".join((output + errors).splitlines()[-30:])
        raise CommandFailed(
            f"`{' '.join(words)}` ended with status {process.returncode}{said}", status=process.returncode
        )
    return output or ""


def _waited_for(
    process: subprocess.Popen[str], stdin: str | None, deadline: float, in_vain: Callable[[], str | None]
) -> tuple[str, str]:
    while True:
        left = deadline - time.monotonic()
        try:
            return process.communicate(stdin, timeout=max(min(left, LOOK_SECONDS), 0))
        except subprocess.TimeoutExpired:
            if left <= LOOK_SECONDS:
                raise
        stdin = None  # already sent
        if why := in_vain():
            raise GivenUp(why)


def end_all() -> None:
    """Ask every program that any thread is running to end, so that no thread waits for one that is not needed."""
    for process in list(_running):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM, some time to end its children, then SIGKILL."""
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
