"""Moves a learner's tensors off the device and back, so that a sampler can use the memory in its turn.

Parking keeps the tensor objects and empties their storages: each storage is copied to host memory, and `unpark` fills
it again with the same bits. So the holders of a tensor (the optimizer, FSDP's groups) need not know. A parked tensor
has no bytes, and callers refuse to use it. Host memory is pinned for CUDA and kept between turns, because pinning costs
more than copying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from deepcoder_trainer.learner.host_bytes import HostBytes


class Parking:
    """Moves the tensors of one rank to host memory and back."""

    def __init__(self, tensors: Callable[[], Iterable[Tensor]]) -> None:
        """`tensors` must return the same tensors in the same order each time."""
        self._tensors = tensors
        self._hosts: list[HostBytes] = []
        self.parked = False

    def park(self) -> None:
        """Copy all tensors to the host and free the device's memory. Idempotent."""
        if self.parked:
            return
        storages = self._storages()
        if not self._hosts:
            self._hosts = [HostBytes(s.nbytes(), pinned=s.device.type == "cuda") for s in storages]
        for storage, host in zip(storages, self._hosts, strict=True):
            host.fill(_bytes(storage))
        _wait(storages)
        for storage in storages:
            storage.resize_(0)
        self.parked = True
        if any(storage.device.type == "cuda" for storage in storages):
            torch.cuda.empty_cache()

    def unpark(self) -> None:
        """Copy all tensors back to the device. Idempotent."""
        if not self.parked:
            return
        storages = self._storages()
        for storage, host in zip(storages, self._hosts, strict=True):
            storage.resize_(host.nbytes)
            host.restore(_bytes(storage))
        _wait(storages)
        self.parked = False

    def _storages(self) -> list[torch.UntypedStorage]:
        """Return the tensors' storages, without duplicates."""
        found: dict[int, torch.UntypedStorage] = {}
        for tensor in self._tensors():
            local = tensor.detach()
            storage = (local.to_local() if isinstance(local, DTensor) else local).untyped_storage()
            found.setdefault(storage._cdata, storage)
        return list(found.values())


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _wait(storages: Iterable[torch.UntypedStorage]) -> None:
    for device in {storage.device for storage in storages if storage.device.type == "cuda"}:
        torch.cuda.synchronize(device)
