"""Start of a zygote process: warm up, confine what is confined once, report, serve.

Started by the judge as a plain interpreter with a clean environment; its first packet says how to confine. It answers
`{"ready": true, …}` or `{"error": …}` and, in the latter case, ends: the judge then tries a weaker tier, or refuses to
start.
"""

from __future__ import annotations

import _sitebuiltins
import builtins
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepcoder_sandbox.worker import confine, landlock, libc, namespaces, readable, seccomp, zygote

PREAMBLE = (
    *("abc", "array", "ast", "bisect", "builtins", "cmath", "collections", "contextlib", "copy", "dataclasses"),
    *("datetime", "decimal", "enum", "fractions", "functools", "heapq", "io", "itertools", "json", "linecache"),
    *("math", "numbers", "operator", "queue", "random", "re", "statistics", "string", "struct", "textwrap"),
    *("threading", "time", "traceback", "types", "typing"),
)
"""Modules that programs commonly import, loaded once a zygote."""


def main(descriptor: int, root: str) -> None:
    """Serve on an inherited socket. `root` is where this package was found, and is forgotten again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    packet = channel.recv(1 << 16)
    if not packet:
        return
    try:
        config = json.loads(packet)
        served, after_run = _set_up(config, channel, root)
    except Exception as error:
        channel.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        return
    channel.send(json.dumps({"ready": True, "landlock_abi": libc.landlock_abi()}).encode())
    served.serve(after_run)


def _set_up(config: dict[str, Any], channel: socket.socket, root: str) -> tuple[zygote.Zygote, Callable[[], None]]:
    for name in [*PREAMBLE, *config["preload"]]:
        if name in config["preload"]:
            sys.path[:0] = [path for path in config["packages"] if path not in sys.path]
        importlib.import_module(name)
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    vars(builtins)["help"] = _sitebuiltins._Helper()
    sys.path[:] = [path for path in sys.path if path != root]
    tier = config["tier"]
    space = namespaces.enter(config, channel) if tier == "Namespaces" else namespaces.HOST
    proc = os.open(space.proc, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    confined = tier != "Unconfined"
    rules = readable.readable(config["packages"], space.scratch)
    os.chdir(space.scratch or "/")
    confine.prepare_zygote(space.max_threads, keep_capabilities=space.program_uid is not None)
    confinement = confine.Confinement(
        ruleset=landlock.build_ruleset(rules) if confined else None,
        filter=seccomp.Filter() if confined else None,
        uid=space.program_uid,
        base_address_space=_address_space(proc),
    )
    confine.reserve_low_descriptors()
    served = zygote.Zygote(channel, confinement, proc)
    gc.collect()
    gc.freeze()
    gc.disable()
    return served, space.clean


def _address_space(proc: int) -> int:
    descriptor = os.open("self/statm", os.O_RDONLY, dir_fd=proc)
    try:
        return int(os.read(descriptor, 128).split()[0]) * resource.getpagesize()
    finally:
        os.close(descriptor)


def package_root() -> str:
    """Return the directory that holds the package, for the command line of a zygote."""
    return str(Path(__file__).resolve().parents[2])
