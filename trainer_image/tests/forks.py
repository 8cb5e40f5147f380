"""Processes that are forked from one that has loaded what they need: loading takes most of their CPU time.

`Forks` runs functions, `ForkedPython` what `python -c` runs. Each runs in its own process, with its own pid, exit
status and output. A module that the first process does not find is left out, so that each fork would load it: forks
refuse to run without it.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.forkserver import ForkServer
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock


class Forks:
    """A process that loads modules when it is first asked for a fork. They must start no threads."""

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        # multiprocessing has one such process, which loads what its first user wants.
        self._server = ForkServer()
        self._server.set_forkserver_preload(list(modules))

    def start(self, function: Callable[..., None], *args: Any) -> BaseProcess:
        """Call a function in a new process. It is found by its module's name."""
        process = multiprocessing.get_context("forkserver").Process(
            target=_call, args=(self._modules, function, *args), daemon=True
        )
        with (
            mock.patch("multiprocessing.forkserver.connect_to_new_process", self._server.connect_to_new_process),
            mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),  # it looks where this process does
        ):
            process.start()
        return process


class ForkedPython:
    """`python -c`, with modules that are loaded already."""

    def __init__(self, *modules: str) -> None:
        self._forks = Forks(*modules, __name__)

    def run(self, source: str, arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """Run it in a folder to its end, for a minute at most."""
        with tempfile.TemporaryDirectory() as scratch:
            out, err = Path(scratch, "out"), Path(scratch, "err")
            out.touch()
            err.touch()
            process = self._forks.start(_be_python, source, list(arguments), str(folder), str(out), str(err))
            process.join(60)
            if process.exitcode is None:
                process.kill()
                raise subprocess.TimeoutExpired(arguments, 60)
            return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


def _call(modules: Sequence[str], function: Callable[..., None], *args: Any) -> None:
    missing = set(modules) - sys.modules.keys()
    assert not missing, f"the process that is forked could not load {missing}, so each fork would"
    function(*args)


def _be_python(source: str, arguments: list[str], folder: str, out: str, err: str) -> None:
    os.chdir(folder)
    for descriptor, path in ((1, out), (2, err)):
        opened = os.open(path, os.O_WRONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["-c", *arguments]
    exec(compile(source, "<string>", "exec"), {"__name__": "__main__"})
