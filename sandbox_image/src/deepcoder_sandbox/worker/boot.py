"""Start of a zygote process: warm up, apply the confinement that is applied once, report, serve.

The judge starts it as a plain interpreter with a clean environment. The first packet says how to confine. The zygote
answers with the confinement that it put in force, or with `{"error": …}` and ends; the judge then tries a weaker tier,
or refuses to start.

Every fork copies what is loaded here, whether a program needs it or not: about 0.01 ms per module and run.
"""

from __future__ import annotations

import _sitebuiltins
import builtins
import gc
import importlib
import json
import os
import posix
import random
import resource
import signal
import socket
import sys
from os import chdir, fork  # by name: LiveCodeBench's harness takes them out of the module
from os.path import dirname, realpath
from types import ModuleType
from typing import Any

from deepcoder_sandbox.worker import (
    confine,
    heap_fill,
    landlock,
    large_heap,
    libc,
    memory_layout,
    namespaces,
    readable_files,
    seccomp,
    thread_gate,
    zygote,
)

PREAMBLE = (
    *("abc", "bisect", "builtins", "collections", "contextlib", "copy", "enum", "functools", "heapq", "io"),
    *("itertools", "json", "linecache", "math", "operator", "random", "re", "string", "struct", "threading", "time"),
    *("traceback", "types", "typing"),
)
"""Modules that programs commonly import, loaded once per zygote."""

_PLAIN_PREAMBLE = ("datetime", "decimal", "fractions")
"""Further ones, for scorings whose programs import what they use themselves."""

_SEED = 0
_UMASK = 0o022
"""The umask of zygotes and programs. With a stricter one, inherited from whoever starts the judge, a program that has a
user of its own could not enter the directories of its own root."""
_LEFT_ALONE = {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}
"""Signals that cannot be set, and the one that every Python ignores. Every Python ignores SIGXFSZ too, but for programs
it is set: only if it ends a program that writes too much is the verdict `output_limit`."""
_STACK_BYTES, _HARNESS_STACK_BYTES = 128 << 20, 8 << 20  # what the harness's own process usually has


def main(descriptor: int, root: str) -> None:
    """Serve on an inherited socket. `root`, where this package was found, leaves the path."""
    _forget_signals()
    os.umask(_UMASK)
    confine.end_before_the_judge()
    channel = socket.socket(fileno=confine.out_of_the_way(descriptor))
    os.close(descriptor)
    packet = channel.recv(1 << 16)
    if not packet:
        return
    try:
        config = json.loads(packet)
        runner = _load(config, root)
        memory_layout.move_text()
        memory_layout.join()
        space = namespaces.enter(config, channel) if config["tier"] == "Namespaces" else namespaces.HOST
        served, in_force, system_calls = _set_up(config, space, channel, runner)
        answer = json.dumps(in_force).encode()
        # Found before any program runs: one that has filled its memory leaves none for a search.
        served.sockets = [each for each in gc.get_objects() if type(each) is socket.socket]
        _settle()
        large_heap.use_large_pages()  # which the filter refuses
        if system_calls is not None:
            system_calls.inherited.load(0)
    except Exception as error:
        channel.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        return
    channel.send(answer)
    served.serve(space.clean)


def _forget_signals() -> None:
    """Neither ignore nor block what whoever started the judge ignores or blocks.

    With SIGCHLD ignored, no run's end would be seen; with SIGALRM blocked, a session would not hear its alarm.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _LEFT_ALONE:
        signal.signal(number, signal.SIG_DFL)


def _load(config: dict[str, Any], root: str) -> ModuleType:
    """Load what programs commonly import, and make the interpreter look as if it was started for a program.

    Returns the module with what a runner does once it is confined.

    So far, modules could not register fork hooks (see the command line in `deepcoder_sandbox.zygote_process`). For a
    fork of a single thread only the hook of `random` matters, which draws a new seed. Here every run begins with the
    same seed and the same hash seed, so that a program is judged alike each time.
    """
    for name in PREAMBLE if config["harness"] else (*PREAMBLE, *_PLAIN_PREAMBLE):
        importlib.import_module(name)
    runner = importlib.import_module(f"{__package__}.{'rehearsal' if config['harness'] else 'program_rehearsal'}")
    random.seed(_SEED)
    os.register_at_fork = posix.register_at_fork
    sys.path[:0] = [path for path in config["packages"] if path not in sys.path]
    for name in config["preload"]:
        importlib.import_module(name)
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    vars(builtins)["help"] = _sitebuiltins._Helper()
    for name in ("copyright", "credits", "license"):  # `site` gives them texts, which no program needs
        setattr(builtins, name, _sitebuiltins._Printer(name, ""))
    sys.path[:] = [path for path in sys.path if path != root]
    return runner


def _set_up(
    config: dict[str, Any], space: namespaces.Space, channel: socket.socket, runner: ModuleType
) -> tuple[zygote.Zygote, dict[str, Any], seccomp.Filter | None]:
    """Return the zygote, what will be in force for every program that it runs, and the filter to be loaded.

    With what is in force goes the largest memory limit that the judge's own leaves to a program.
    """
    confined = config["tier"] != "Unconfined"
    runner.prepare_zygote(confine.Confinement.harmless(confined=confined))
    gc.collect()
    heap_fill.fill_holes()  # so that what is made here, and used in every run, lies together
    proc = os.open(space.proc, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    chdir(space.scratch or "/")
    stack_bytes = _HARNESS_STACK_BYTES if config["harness"] else _STACK_BYTES
    confine.prepare_zygote(stack_bytes, keep_capabilities=space.program_uid is not None)
    proc = confine.out_of_the_way(proc)
    gate = _thread_gate(proc) if config["tier"] == "Landlock" else None
    if gate is None:
        confine.limit_threads(space.max_threads)
    system_calls = seccomp.Filter() if confined else None
    ruleset = landlock.build_ruleset(readable_files.readable(config["packages"], space.scratch)) if confined else None
    confinement = confine.Confinement(
        ruleset=confine.out_of_the_way(ruleset) if ruleset is not None else None,
        system_calls=system_calls,
        uid=space.program_uid,
        base_address_space=_address_space(proc),
    )
    served = zygote.Zygote(
        socket.socket(fileno=confine.out_of_the_way(channel.fileno())),
        confinement,
        proc,
        gate,
        runner.run,
        sessions=config["harness"],
    )
    in_force = {
        "tier": config["tier"],
        "landlock_abi": libc.landlock_abi() if confined else 0,
        "thread_gate": gate is not None,
        "most_memory_mb": confinement.most_memory_mb(),
    }
    return served, in_force, system_calls


def _settle() -> None:
    """Prepare the heap for copies. Their first objects fill the places of whatever is freed after this."""
    gc.collect()
    libc.trim_heap()
    heap_fill.fill_holes()
    gc.freeze()
    gc.disable()


def _thread_gate(proc: int) -> thread_gate.ThreadGate | None:
    """Return the gate; None if the kernel does not offer one. Raises OSError if it could not count threads."""
    _check_visible(proc)
    try:
        return thread_gate.ThreadGate(proc)
    except OSError:
        return None


def _check_visible(proc: int) -> None:
    """Raise OSError if /proc hides the processes of programs: the gate would then refuse every thread."""
    reading, writing = os.pipe()
    pid = fork()
    if pid == 0:  # not dumpable, as a program is
        try:
            os.close(writing)
            os.read(reading, 1)
        finally:
            os._exit(0)  # whatever fails: no second zygote may continue from here
    try:
        os.close(os.open(f"{pid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc))
    except OSError as error:
        raise OSError(f"/proc does not show a program's threads, mount it without hidepid: {error}") from error
    finally:
        os.close(reading)
        os.close(writing)
        os.waitpid(pid, 0)


def _address_space(proc: int) -> int:
    descriptor = os.open("self/statm", os.O_RDONLY, dir_fd=proc)
    try:
        return int(os.read(descriptor, 128).split()[0]) * resource.getpagesize()
    finally:
        os.close(descriptor)


def package_root() -> str:
    """Return the directory that holds the package, for the command line of a zygote."""
    return dirname(dirname(dirname(realpath(__file__))))
