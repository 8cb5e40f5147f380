"""Fills the holes in a zygote's heap, so that the allocations of its copies are contiguous.

Memory that was freed while modules were loaded is scattered over the whole heap. A program's first objects would go
into these holes, one per page, and each such page would be copied. With every hole filled, the objects go to new pages,
one after another. The filled holes are never freed: some hundred KiB, in pages that the zygote already has.

The code depends on how CPython's allocator of small objects and that of the C library work. If they work differently,
this costs a little memory, and nothing fails.
"""

from __future__ import annotations

from typing import Final

from deepcoder_sandbox.worker import libc

_POOL_BYTES: Final = 1 << 14
_POOL_HEADER_BYTES: Final = 48
_SMALL: Final = range(16, 513, 16)
"""Sizes of small objects: each has pools of its own."""
_BYTES_OBJECT: Final = 33
_OF_A_NEW_POOL: Final = 4
"""Adjacent objects from a pool's start that show the pool to be new. A used pool returns places in the order in which
they were freed, where the first two are adjacent by chance in one of some fifty."""
_AT_ONCE: Final = 8
"""Objects that are made before one is looked at: the integers for their addresses are small objects themselves, and
would lie between those of their size. Integers up to 256 are not created anew."""
_MOST: Final = 100_000
"""More holes than a zygote can have."""

_taken: list[object] = []


def fill_holes() -> None:
    """Fill all holes."""
    for size in _SMALL:
        _fill(size)
    libc.fill_heap()


def _fill(size: int) -> None:
    row: list[object] = [None] * _AT_ONCE
    before = in_a_row = 0
    for _ in range(_MOST // _AT_ONCE):
        for index in range(_AT_ONCE):
            row[index] = _of_size(size)
        _taken.extend(row)
        for taken in row:
            if id(taken) % _POOL_BYTES == _POOL_HEADER_BYTES:
                in_a_row = 1
            else:
                in_a_row = in_a_row + 1 if in_a_row and id(taken) == before + size else 0
            if in_a_row == _OF_A_NEW_POOL:
                return
            before = id(taken)


def _of_size(size: int) -> object:
    """Return a new object that takes `size` bytes."""
    if size < _BYTES_OBJECT:
        return object() if size == object.__basicsize__ else float(1)
    return bytes(size - _BYTES_OBJECT)
