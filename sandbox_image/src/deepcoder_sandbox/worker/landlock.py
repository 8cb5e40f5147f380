"""Landlock: which files a program may read. It may write only to its scratch directory.

The ruleset is built once per zygote, and each runner only *enters* it. Rights that this kernel does not know are left
out; the system call filter refuses what they would have refused: truncate, opening with O_TRUNC but not for writing
(whoever may write a file may also empty it), and commands to devices.
"""

from __future__ import annotations

import os
import stat
import struct

from deepcoder_sandbox.worker import libc

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FILE_RIGHTS = _WRITE_FILE | _READ_FILE | _TRUNCATE
_SCOPE_ABSTRACT_UNIX_AND_SIGNALS = 0b11

READ = _READ_FILE | _READ_DIR
"""Read files and list directories beneath a path."""
LIST = _READ_DIR
"""List directories beneath a path, read nothing."""
READ_WRITE_FILE = _READ_FILE | _WRITE_FILE
"""Read and write one file, such as /dev/null."""
SCRATCH = READ | _WRITE_FILE | _TRUNCATE | _REFER | (1 << 4) | (1 << 5) | (1 << 7) | (1 << 8)
"""Make, read, change and remove files and directories beneath a path."""


def handled_rights(abi: int) -> int:
    """Return the file rights that a kernel with this ABI can refuse."""
    rights = (1 << 13) - 1
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        if abi >= since:
            rights |= right
    return rights


def build_ruleset(rules: list[tuple[str, int]]) -> int:
    """Return a ruleset's descriptor that grants (path, rights) and refuses all else. A missing path grants nothing."""
    abi = libc.landlock_abi()
    if abi < 1:
        raise OSError("landlock: this kernel has none, or it is switched off (lsm= on its command line)")
    handled = handled_rights(abi)
    attributes = struct.pack("<Q", handled)
    if abi >= 4:
        attributes += struct.pack("<Q", 0b11)  # bind and connect over TCP
    if abi >= 6:
        attributes += struct.pack("<Q", _SCOPE_ABSTRACT_UNIX_AND_SIGNALS)
    ruleset = libc.landlock_create_ruleset(attributes)
    for path, rights in rules:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                rights &= _FILE_RIGHTS
            if rights & handled:
                libc.landlock_add_path_rule(ruleset, struct.pack("<Qi", rights & handled, descriptor))
        finally:
            os.close(descriptor)
    return ruleset
