"""Confines the process that reads a model's mathematics: no other processes, TCP, file writes or program starts.

Landlock needs no privileges. A process in its own domain cannot look into processes outside of it, so the trainer's
memory, and its environment with the storage keys, are out of reach. That also holds for root without capabilities; with
CAP_PERFMON, which allows profiling the whole system, a process could read any environment.

This is defence in depth: the libraries in that process have no known way to execute what they read. It is not a sandbox
like the judges': files can be read, and UDP and Unix sockets with a path can be used. It has no effect on kernels
before 5.13 and under seccomp profiles that refuse the calls. Before 6.7, TCP stays open; before 6.12, signals do.
"""

from __future__ import annotations

import ctypes
import struct

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_VERSION = 1
_CAPABILITIES_VERSION, _CAPABILITIES_BYTES = 0x20080522, 24
_PR_SET_NO_NEW_PRIVS = 38
_EXECUTE_AND_WRITE = 1 << 0 | 1 << 1 | sum(1 << bit for bit in range(4, 13))
"""Landlock rights: execute; write to, remove or create a file, folder, link, socket, pipe or device."""
_BIND_AND_CONNECT = 1 << 0 | 1 << 1
_ABSTRACT_SOCKETS_AND_SIGNALS = 1 << 0 | 1 << 1
_WITH_NETWORK, _WITH_SCOPES = 4, 6
"""Versions of the Landlock ABI that introduced these rights."""


def confine() -> bool:
    """Confine the calling thread and its children permanently. Return whether the kernel supports it."""
    libc = ctypes.CDLL(None)
    if libc.capset(struct.pack("Ii", _CAPABILITIES_VERSION, 0), bytes(_CAPABILITIES_BYTES)) != 0:
        return False
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    # Without rules, the kernel denies all rights that are listed here.
    attributes = struct.pack("Q", _EXECUTE_AND_WRITE)
    if version >= _WITH_NETWORK:
        attributes += struct.pack("Q", _BIND_AND_CONNECT)
    if version >= _WITH_SCOPES:
        attributes += struct.pack("Q", _ABSTRACT_SOCKETS_AND_SIGNALS)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0 or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
