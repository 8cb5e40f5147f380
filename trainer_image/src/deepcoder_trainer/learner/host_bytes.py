"""Host memory for tensors that leave the device, in pieces whose sizes torch does not round up.

torch rounds each pinned allocation up to a power of two: 356 MB take 512 MB, so a learner could need twice the host
memory that `plan` computes. Here the bytes of one tensor lie in pieces whose sizes are powers of two. Copies from and
to CUDA are asynchronous; the caller synchronizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1 << 20
"""Smallest size of a piece in bytes, except for the last one, which torch may round up."""


class HostBytes:
    """Host memory for the bytes of one tensor."""

    def __init__(self, nbytes: int, *, pinned: bool) -> None:
        self.nbytes = nbytes
        self._sizes = piece_sizes(nbytes)
        self._pieces = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for size in self._sizes]

    def fill(self, source: Tensor) -> None:
        """Copy `source`, [nbytes] uint8, to the host."""
        for piece, part in zip(self._pieces, source.split(self._sizes), strict=True):
            piece.copy_(part, non_blocking=True)

    def restore(self, target: Tensor) -> None:
        """Copy the host's bytes into `target`, [nbytes] uint8."""
        for piece, part in zip(self._pieces, target.split(self._sizes), strict=True):
            part.copy_(piece, non_blocking=True)


def piece_sizes(nbytes: int) -> list[int]:
    """Split `nbytes` into powers of two, the largest first, and a rest below `SMALLEST`."""
    whole = nbytes // SMALLEST
    sizes = [SMALLEST << bit for bit in reversed(range(whole.bit_length())) if whole >> bit & 1]
    return sizes + [nbytes % SMALLEST] * bool(nbytes % SMALLEST)
