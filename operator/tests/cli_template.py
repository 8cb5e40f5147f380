"""`kubectl-deepcoder` for the docs' shells, forked from a process that has loaded it: loading takes half a second of
CPU time, most of what a command takes, and the pages type some dozens.

In the PATH is a script that hands its arguments, environment, folder and descriptors to that process, whose child is
the command; the script ends as the child does. A child that dies says nothing, which is exit code 1. The command itself
is started by the tests of kubectl's plugin.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from control_plane import _die_with_parent

_SCRIPT = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as way:
    way.connect({address!r})
    given = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(way, [len(given).to_bytes(4, "big")], [0, 1, 2])
    way.sendall(given)
    sys.exit(int(way.recv(16) or b"1"))
"""


@contextmanager
def forking(directory: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """Start the process; the script, in a folder of its own for a PATH."""
    address, script = directory / "socket", directory / "programs" / "kubectl-deepcoder"
    script.parent.mkdir(parents=True)
    script.write_text(_SCRIPT.format(python=sys.executable, address=str(address)))
    script.chmod(0o755)
    command = [sys.executable, __file__, str(address)]
    with subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.PIPE, preexec_fn=_die_with_parent
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n", "the command line could not be loaded"
            yield script
        finally:
            process.kill()


def serve(address: str) -> None:
    """Load everything, and fork for whoever asks, until killed."""
    commands = importlib.import_module("deepcoder_cli.commands")
    for module in pkgutil.iter_modules(commands.__path__, "deepcoder_cli.commands."):
        importlib.import_module(module.name)
    importlib.import_module("deepcoder_cli.program")
    gc.freeze()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    print("ready", flush=True)
    while True:
        way, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _be_the_command(way)
        way.close()


def _be_the_command(way: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, descriptors, *_ = socket.recv_fds(way, 4, 3)
    with way.makefile("rb") as sent:
        arguments, folder, environment = json.loads(sent.read(int.from_bytes(head, "big")))
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # Those of before know that they were pipes, or a terminal.
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["kubectl-deepcoder", *arguments]
    from deepcoder_cli.__main__ import main

    code: int | str | None = 1
    try:
        code = main()
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        way.sendall(str(int(code or 0)).encode())
        os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
