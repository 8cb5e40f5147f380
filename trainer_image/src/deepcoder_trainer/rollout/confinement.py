"""What the process that reads a model's mathematics gives up: other processes, TCP, writing files, running programs.

Landlock needs no rights: a process in a domain of its own may not look into one outside of it, so the environment of
the trainer, which holds storage's keys, and its memory are out of reach. Of root too, once it has no capabilities: who
may profile the whole system (CAP_PERFMON) may read any environment.

This is depth: the libraries there have no known way to run what they read. It is no sandbox such as programs are judged
in: files can be read, and UDP and Unix sockets with a path be used. Kernels before 5.13, and seccomp profiles that
refuse the calls, have none of it; before 6.7 TCP is open, and before 6.12 signals are.
"""

from __future__ import annotations

import ctypes
import struct

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_VERSION = 1
_CAPABILITIES_VERSION, _CAPABILITIES_BYTES = 0x20080522, 24
_PR_SET_NO_NEW_PRIVS = 38
_EXECUTE_AND_WRITE = 1 << 0 | 1 << 1 | sum(1 << bit for bit in range(4, 13))
"""execute; write to, remove or make a file, folder, link, socket, pipe or device."""
_BIND_AND_CONNECT = 1 << 0 | 1 << 1
_ABSTRACT_SOCKETS_AND_SIGNALS = 1 << 0 | 1 << 1
_WITH_NETWORK, _WITH_SCOPES = 4, 6
"""Versions of the interface."""


def confine() -> bool:
    """Confine the calling thread, and what it starts, for good; whether the kernel does that."""
    libc = ctypes.CDLL(None)
    if libc.capset(struct.pack("Ii", _CAPABILITIES_VERSION, 0), bytes(_CAPABILITIES_BYTES)) != 0:
        return False
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    # Without a rule all that is named here is refused.
    attributes = struct.pack("Q", _EXECUTE_AND_WRITE)
    if version >= _WITH_NETWORK:
        attributes += struct.pack("Q", _BIND_AND_CONNECT)
    if version >= _WITH_SCOPES:
        attributes += struct.pack("Q", _ABSTRACT_SOCKETS_AND_SIGNALS)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0 or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
