"""Host memory for what leaves the device, in pieces that torch allocates as they are.

torch rounds each pinned allocation up to a power of two: 356 MB take 512 MB. A learner could need twice the host memory
that `plan` computes. Here the bytes of one tensor lie in pieces whose sizes are powers of two. Copies from and to CUDA
are not waited for.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1 << 20
"""Smallest piece in bytes, except for the last one: what torch may round up."""


class HostBytes:
    """Room for the bytes of one tensor."""

    def __init__(self, nbytes: int, *, pinned: bool) -> None:
        self.nbytes = nbytes
        self._sizes = piece_sizes(nbytes)
        self._pieces = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for size in self._sizes]

    def fill(self, source: Tensor) -> None:
        """Copy [nbytes] bytes here."""
        for piece, part in zip(self._pieces, source.split(self._sizes), strict=True):
            piece.copy_(part, non_blocking=True)

    def restore(self, target: Tensor) -> None:
        """Copy what is here into [nbytes] bytes."""
        for piece, part in zip(self._pieces, target.split(self._sizes), strict=True):
            part.copy_(piece, non_blocking=True)


def piece_sizes(nbytes: int) -> list[int]:
    """Powers of two, the largest first, and what is left below `SMALLEST`."""
    whole = nbytes // SMALLEST
    sizes = [SMALLEST << bit for bit in reversed(range(whole.bit_length())) if whole >> bit & 1]
    return sizes + [nbytes % SMALLEST] * bool(nbytes % SMALLEST)
