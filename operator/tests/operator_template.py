"""The operator's process, forked from one that has loaded its modules: loading them takes a second of CPU time, most of
what a start takes, and some dozens of tests start one.

What it is given is what the command is given: arguments, environment, a file for its output. Signals, exit status and
pid are a process's own. The command itself is started by tests of `python -m deepcoder_operator`.
"""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

POLL_SECONDS = 0.02
COMMAND_SECONDS = 90.0

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([f"deepcoder_operator.{part}" for part in ("__main__", "app", "logs", "release")])


class Running(Protocol):
    """A process, whichever way it was started."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...

    def send_signal(self, signal: int, /) -> None: ...


class Forked:
    """One that was forked."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        constants: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """`constants` are numbers that a test needs otherwise, by module and name below the operator's package."""
        given = (list(arguments), dict(environment), str(log), dict(constants))
        self._process = _forks.Process(target=_run, args=given, daemon=True)  # or this one would wait for it at its end
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    async def wait(self) -> int:
        """Until it has ended."""
        while (code := self.returncode) is None:
            await asyncio.sleep(POLL_SECONDS)
        return code

    def send_signal(self, signal: int, /) -> None:
        """Unless it has ended."""
        with suppress(ProcessLookupError):  # it has, and how is not told yet
            if self.returncode is None:
                os.kill(self.pid, signal)


async def said_by(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> str:
    """What a command says that comes to its end, and well."""
    process = Forked(arguments, environment, log)
    async with asyncio.timeout(COMMAND_SECONDS):
        code = await process.wait()
    said = log.read_text()
    assert code == 0, said
    return said


def _run(arguments: list[str], environment: dict[str, str], log: str, constants: dict[str, float]) -> None:
    """In the new process: be the command."""
    os.environ.clear()
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    sys.argv = ["deepcoder-operator", *arguments]
    for place, value in constants.items():
        module, _, name = place.rpartition(".")
        of = importlib.import_module(f"deepcoder_operator.{module}")
        assert hasattr(of, name), f"the operator has no {place}"
        setattr(of, name, value)

    from deepcoder_operator.__main__ import main

    main()
