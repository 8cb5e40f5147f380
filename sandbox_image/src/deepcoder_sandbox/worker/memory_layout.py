"""Layout of the interpreter in a zygote's memory, which every fork copies.

The interpreter's text is moved from its file to pages of 2 MiB (`move_text`). A copy then finds it mapped. From the
file, it would be mapped piece by piece, and the copy would release a thousand pages at its end. Libraries are joined
into two mappings instead of five (`join`), because a fork copies each mapping.

This costs up to 4 MiB per zygote. If the kernel has no large pages (it needs Linux 6.1), or refuses a step, everything
stays and works as before: nothing here fails.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from deepcoder_sandbox.worker import libc
from deepcoder_sandbox.worker.large_heap import LARGE


class Mapping(NamedTuple):
    """A line of /proc/self/maps."""

    start: int
    end: int
    mode: str
    name: str


def mappings() -> list[Mapping]:
    """Return what this process has mapped, in order of addresses."""
    found = []
    with open("/proc/self/maps") as lines:
        for line in lines:
            span, mode, _, _, _, *name = line.split(maxsplit=5)
            start, _, end = span.partition("-")
            found.append(Mapping(int(start, 16), int(end, 16), mode, name[0].strip() if name else ""))
    return found


def move_text() -> None:
    """Move text and constants of libraries to large pages, where they fill one."""
    for library in constant_parts(mappings()):
        first = -(-library[0].start // LARGE) * LARGE
        length = library[-1].end // LARGE * LARGE - first
        if length > 0:
            _move(first, length)


def join() -> None:
    """Join the constant parts of each library, with its text, and what became constant with what is written.

    Nobody loses protection: a program may change text and addresses in its own process anyway, and in no other.
    """
    found = mappings()
    followers = {mapping.start: mapping for mapping in found}
    for library in constant_parts(found):
        end = library[-1].end
        written = followers.get(end)
        if len(library) > 1 and written and (written.name, written.mode) == (library[-1].name, "rw-p"):
            libc.protect(library[-1].start, end - library[-1].start, libc.PROT_READ_WRITE)
            library.pop()
        if any(part.mode == "r-xp" for part in library):
            start = library[0].start
            libc.protect(start, library[-1].end - start, libc.PROT_READ_EXECUTE)


def constant_parts(found: list[Mapping]) -> list[list[Mapping]]:
    """Return the mappings of each library that follow one another and cannot be written."""
    libraries: list[list[Mapping]] = []
    before: Mapping | None = None
    for mapping in found:
        if not mapping.name.startswith("/") or mapping.mode not in ("r--p", "r-xp"):
            before = None
            continue
        if before and (before.name, before.end) == (mapping.name, mapping.start):
            libraries[-1].append(mapping)
        else:
            libraries.append([mapping])
        before = mapping
    return libraries


def _move(start: int, length: int) -> None:
    """Put a copy on large pages in place of what lies at `start`."""
    room = libc.map_memory(length + LARGE)
    if room is None:
        return
    copy = -(-room // LARGE) * LARGE
    libc.unmap(room, copy - room)
    libc.unmap(copy + length, room + LARGE - copy)
    libc.advise(copy, length, libc.MADV_HUGEPAGE)
    ctypes.memmove(copy, start, length)
    moved = (
        libc.advise(copy, length, libc.MADV_COLLAPSE)  # small pages would make forks slower
        and libc.protect(copy, length, libc.PROT_READ_EXECUTE)
        and libc.move_mapping(copy, start, length)
    )
    if not moved:
        libc.unmap(copy, length)
