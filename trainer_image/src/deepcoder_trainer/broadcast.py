"""One broadcast group: the learner's first rank and the workers of one sampler, between GPUs by NCCL.

vLLM's own NCCL engine has all samplers in one group without a deadline: whoever dies in the middle of a transfer hangs
the learner for good. Here each sampler has a group of its own, that nobody else is part of, so a dead one costs its
group alone, and every wait is bounded. The price is that the learner's card sends the weights once a sampler.

Processes meet at a store that the learner listens on. Between CPUs the same code runs on gloo; what is of NCCL alone
was written from its documentation and has not run. A group connects at its first broadcast and waits there for ever, so
all have met at the store before. A transfer that hangs goes on hanging on the card until the group is aborted. And
torch's own watchdog ends the *process* in which a peer is lost: it is told not to for these groups, which look
themselves.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import BroadcastOptions, PrefixStore, Store

from deepcoder_trainer.types import PlacedTensor, TensorShape

JOIN_SECONDS = 120.0
"""Longest time for the others of a group to come."""
BUCKET_SECONDS = 120.0
"""Longest time for one bucket, the one before it being loaded meanwhile."""
BUCKET_BYTES = 256 << 20
"""Bytes of weights in one broadcast, about; a larger tensor has one of its own."""
_ALIGNMENT = 256
_POLL_SECONDS = 0.002
_WATCHDOG = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
"""Torch's variable, read when a group is made; 0: a lost peer is the group's own to find."""


class GroupLost(Exception):
    """A group that has to be made anew: someone did not come, or does not answer."""


class BroadcastGroup:
    """Rank 0 sends, the others receive."""

    def __init__(self, store: Store, name: str, rank: int, size: int, device: torch.device) -> None:
        """Waits for the others; raises `GroupLost` when they do not come in time."""
        self.name = name
        mine = PrefixStore(name, store)
        try:
            mine.set(f"rank-{rank}", "here")
            mine.wait([f"rank-{other}" for other in range(size)], timedelta(seconds=JOIN_SECONDS))
            self._group = _process_group(mine, rank, size, device)
        except RuntimeError as error:
            raise GroupLost(f"{name}: not all {size} have met within {JOIN_SECONDS:.0f} s: {error}") from error

    def begin(self, buffer: Tensor) -> Any:
        """Send it, or receive into it; `finish` waits for that."""
        options = BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        try:
            return self._group.broadcast([buffer], options)
        except RuntimeError as error:
            raise GroupLost(f"{self.name}: {error}") from error

    def finish(self, work: Any) -> None:
        """Wait until it is done; raises `GroupLost` when it failed, or is not done in time."""
        deadline = time.monotonic() + BUCKET_SECONDS
        while not work.is_completed():
            if time.monotonic() > deadline:
                raise GroupLost(f"{self.name}: no answer within {BUCKET_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)
        try:
            work.wait()
        except RuntimeError as error:
            raise GroupLost(f"{self.name}: {error}") from error

    def close(self) -> None:
        """Give it up, whatever is under way."""
        with suppress(Exception):
            self._group.abort()


def _process_group(store: Store, rank: int, size: int, device: torch.device) -> Any:
    from torch._C import _distributed_c10d as c10d

    if device.type != "cuda":
        return c10d.ProcessGroupGloo(store, rank, size, timedelta(seconds=JOIN_SECONDS))
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=2 * (JOIN_SECONDS + BUCKET_SECONDS))
    with torch.cuda.device(device), _without_watchdog():
        return c10d.ProcessGroupNCCL(store, rank, size, options)


@contextmanager
def _without_watchdog() -> Iterator[None]:
    before = os.environ.get(_WATCHDOG)
    os.environ[_WATCHDOG] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_WATCHDOG]
        else:
            os.environ[_WATCHDOG] = before


def buckets(tensors: Iterable[TensorShape], dtype: torch.dtype) -> Iterator[tuple[int, list[PlacedTensor]]]:
    """Bytes of each broadcast, and where which tensor begins in it: the same on both sides."""
    name_of_dtype = str(dtype).removeprefix("torch.")
    bucket: list[PlacedTensor] = []
    end = 0
    for name, shape in tensors:
        size = math.prod(shape) * dtype.itemsize
        if bucket and end + size > BUCKET_BYTES:
            yield end, bucket
            bucket, end = [], 0
        bucket.append((name, name_of_dtype, tuple(shape), end))
        end = -(-(end + size) // _ALIGNMENT) * _ALIGNMENT
    if bucket:
        yield end, bucket


def placed(buffer: Tensor, dtype: str, shape: Sequence[int], begin: int) -> Tensor:
    """A tensor where it lies in a buffer of bytes."""
    number = getattr(torch, dtype)
    end = begin + math.prod(shape) * number.itemsize
    return buffer[begin:end].view(number).view(tuple(shape))
