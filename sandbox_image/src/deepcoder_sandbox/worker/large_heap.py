"""A place for a zygote's heap where pages of 2 MiB fit, because a fork copies each of these at once.

`reserve` has the allocators of small and of larger objects take memory without gaps, before any library takes a place
in between. `use_large_pages`, when the heap is complete, joins its small pages to large ones, wherever a whole one
fits.

Such a page is one entry of the page table until the zygote or a copy writes to it: the first run does that in all of
them. From then on a zygote has more entries than with small pages, but the kernel copies the 512 of a page in one batch
(since Linux 6.9; measured on 6.18). A write copies 4 KiB, as from a small page.

This costs a zygote up to 6 MiB, and with namespaces as much again in the process outside, which keeps the pages that
were there before. The code depends on how CPython's allocator and that of the C library get their memory. If they do it
differently, or the kernel has no large pages to give, some memory stays unused, and everything works as before: nothing
here fails. On kernels that would copy a page's entries one by one, nothing is reserved.

This module imports others late: whatever is loaded before `reserve` takes memory outside the place.
"""

from __future__ import annotations

import os

LARGE = 2 << 20
"""Bytes of a large page."""

_BATCHES_SINCE = (6, 9)
"""Version of Linux whose fork and exit handle the entries of one large page together."""
_ARENA_BYTES = 1 << 20
"""What CPython requests at once for small objects (since 3.10). The next arena lies below the one before."""
_ZYGOTE_BYTES = 4 << 20
"""What a zygote's small objects take, and a little more."""
_FILLING = (None,) * 58
"""One item less than a tuple of 512 bytes has, the largest that the allocator of small objects gives."""
_MOST = 30_000
"""More objects than there is room for in the arenas, and in those that were there before."""
_BLOCK_BYTES = 60_000
"""For the C library's allocator, which makes a mapping of its own for 128 KiB."""
_MOST_BLOCKS = 1_000

_pins: list[object] = []
"""An object in each arena: without any, the arena would be given back."""
_places: list[int] = []
"""Addresses of the large pages to be."""


def reserve() -> None:
    """Have the allocators take the memory of the large pages to be, where they are of use."""
    if not is_of_use(os.uname().release):
        return
    _reserve_arenas()
    _places.extend(_places_of_arenas())
    _reserve_heap()


def is_of_use(kernel_release: str) -> bool:
    """Return whether a kernel handles the entries of a large page together. An unknown kernel does not."""
    try:
        major, minor = map(int, kernel_release.split(".")[:2])
    except ValueError:
        return False
    return (major, minor) >= _BATCHES_SINCE


def use_large_pages() -> None:
    """Make large pages of the reserved memory, with what it contains."""
    from deepcoder_sandbox.worker import libc

    for place in _places:
        # A fork leaves pages that nobody may write; the kernel joins none if it finds only those. Where memory is gone
        # since, this fails, and a plain write would end the zygote.
        if libc.advise(place, 1, libc.MADV_POPULATE_WRITE):
            libc.advise(place, LARGE, libc.MADV_COLLAPSE)


def _reserve_arenas() -> None:
    # Each object refers to the one before: a list would need memory of its own. When they go, the last one goes first,
    # and so their places are given out again in the order of their addresses.
    last: tuple[object, ...] = (None, *_FILLING)
    lowest = id(last)
    end = (lowest - _ZYGOTE_BYTES) // LARGE * LARGE
    for _ in range(_MOST):
        last = (last, *_FILLING)
        if id(last) < lowest - _ARENA_BYTES // 2:
            lowest = id(last)
            _pins.append((None, *_FILLING))
            if lowest < end:
                break


def _places_of_arenas() -> list[int]:
    """Return where large pages fit into the mappings of the arenas.

    `memory_layout.mappings` would do, but loads modules that belong into the place.
    """
    places: list[int] = []
    with open("/proc/self/maps") as lines:
        for line in lines:
            start, end = (int(number, 16) for number in line.partition(" ")[0].split("-"))
            if any(start <= id(pin) < end for pin in _pins):
                places.extend(range(-(-start // LARGE) * LARGE, end // LARGE * LARGE, LARGE))
    return places


def _reserve_heap() -> None:
    from deepcoder_sandbox.worker import libc

    end = libc.extend_heap(0)
    if end is None:
        return
    place = -(-end // LARGE) * LARGE
    if libc.extend_heap(place - end) is None:
        return
    blocks = []
    for _ in range(_MOST_BLOCKS):
        block = libc.allocate(_BLOCK_BYTES)
        if block >= place + LARGE:  # never freed: it keeps what lies before it from being given back
            _places.append(place)
            break
        blocks.append(block)
    for block in blocks:
        libc.free(block)
