"""One broadcast group: the learner's first rank and the workers of one sampler, between GPUs by NCCL.

vLLM's own NCCL engine puts all samplers into one group without a deadline: a worker that dies during a transfer hangs
the learner for good. Here each sampler has its own group, so a dead sampler affects only that group, and every wait is
bounded. The price is that the learner's GPU sends the weights once per sampler.

The learner sends a bucket to all samplers before the next, so while it waits for one that hangs, healthy ones wait for
it. Hence the order of the deadlines: joining and one bucket at the sender < one bucket at a receiver < a sampler's
whole update < the learner's whole sending. If a receiver gave up first, it would be lost through another's fault.

The processes meet at a store on which the learner listens. Between CPUs the same code runs on gloo; the parts that only
NCCL needs were written from its documentation and have not run. NCCL connects at the first broadcast and waits there
without a limit. So all processes meet at the store first, and the first broadcast is an empty one (`connect`), which
the sender can abandon. A transfer that hangs occupies the GPU until the group is aborted. torch's watchdog would end
the *process* in which a peer is lost, so it is disabled for these groups, which check by themselves.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import BroadcastOptions, PrefixStore, Store

from deepcoder_trainer.types import PlacedTensor, TensorShape

JOIN_SECONDS = 60.0
"""The sender's deadline for all receivers of a group to join; connecting has the same deadline again."""
BUCKET_SECONDS = 60.0
"""The sender's deadline for one bucket, during which receivers also load the previous one."""
RECEIVE_SECONDS = 240.0
"""A receiver's deadline for the sender, which may wait for other samplers to join (twice `JOIN_SECONDS`), then for one
that hangs, and must gather the weights."""
BUCKET_BYTES = 256 << 20
"""Approximate bytes of weights in one broadcast; a larger tensor has its own."""
_ALIGNMENT = 256
_POLL_SECONDS = 0.002
_MEETING_POLL_SECONDS = 0.02
_WATCHDOG = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
"""Environment variable that torch reads when a group is created; 0 disables the watchdog."""
_environment = threading.Lock()


class GroupLost(Exception):
    """A member did not join or does not answer. The group is unusable and must be replaced by a new one."""


class BroadcastGroup:
    """A process group in which rank 0 sends and all others receive."""

    def __init__(self, store: Store, name: str, rank: int, size: int, device: torch.device) -> None:
        """Wait for the other members. Raises `GroupLost` if they do not join in time."""
        self.name = name
        self._device = device
        self._patience = BUCKET_SECONDS if rank == 0 else RECEIVE_SECONDS
        patience = JOIN_SECONDS if rank == 0 else RECEIVE_SECONDS
        mine = PrefixStore(name, store)
        try:
            mine.set(f"rank-{rank}", "here")
            _all_there(mine, size, patience)
            self._group = _process_group(mine, rank, size, device)
        except RuntimeError as error:
            raise GroupLost(f"{name}: not all {size} have met within {patience:.0f} s: {error}") from error

    def connect(self) -> None:
        """Make the first, empty broadcast. It may block without limit, despite its deadline, until all members come."""
        self.finish(self.begin(torch.zeros(1, dtype=torch.uint8, device=self._device)))

    def begin(self, buffer: Tensor) -> Any:
        """Start to send `buffer`, or to receive into it. `finish` waits for the returned work."""
        options = BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        try:
            return self._group.broadcast([buffer], options)
        except RuntimeError as error:
            raise GroupLost(f"{self.name}: {error}") from error

    def finish(self, work: Any, since: float | None = None) -> None:
        """Wait for `work` of `begin`. Raises `GroupLost` if it fails or exceeds its deadline, counted from `since`.

        `since` is a time of `time.monotonic`; the default is now.
        """
        deadline = (time.monotonic() if since is None else since) + self._patience
        while not work.is_completed():
            if time.monotonic() > deadline:
                raise GroupLost(f"{self.name}: no answer within {self._patience:.0f} s")
            time.sleep(_POLL_SECONDS)
        try:
            work.wait()
        except RuntimeError as error:
            raise GroupLost(f"{self.name}: {error}") from error

    def close(self) -> None:
        """Abort the group, including transfers in progress."""
        with suppress(Exception):
            self._group.abort()


def _all_there(store: Store, size: int, seconds: float) -> None:
    """Wait by polling: a wait of the store itself would block its use by all other threads. Raises RuntimeError."""
    deadline = time.monotonic() + seconds
    while not store.check([f"rank-{other}" for other in range(size)]):
        if time.monotonic() > deadline:
            raise RuntimeError("a member did not join")
        time.sleep(_MEETING_POLL_SECONDS)


def _process_group(store: Store, rank: int, size: int, device: torch.device) -> Any:
    from torch._C import _distributed_c10d as c10d

    timeout = timedelta(seconds=2 * RECEIVE_SECONDS)  # torch's own timeout, longer than every deadline here
    if device.type != "cuda":
        return c10d.ProcessGroupGloo(store, rank, size, timeout)
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = timeout
    with torch.cuda.device(device), _without_watchdog():
        return c10d.ProcessGroupNCCL(store, rank, size, options)


@contextmanager
def _without_watchdog() -> Iterator[None]:
    with _environment:  # several threads create groups at the same time
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
    """Yield the size in bytes of each broadcast and the tensors' places in it. Sender and receivers get the same."""
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
    """Return the view of a tensor in a buffer, [n] uint8."""
    number = getattr(torch, dtype)
    end = begin + math.prod(shape) * number.itemsize
    return buffer[begin:end].view(number).view(tuple(shape))
