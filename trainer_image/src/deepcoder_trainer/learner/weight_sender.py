"""Weights from the learner's first rank to samplers on other GPUs, by broadcast.

Rank 0 listens at a store. A sampler's workers join it there under the sampler's name the first time, and the group that
they form stays until one of them is lost (see `broadcast`). A sampler that is missing, hangs or goes away is left out.
Its own update fails too, and it is replaced. That delays neither the other samplers nor the learner, which must take
part in gathering every tensor whatever happens to the receivers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from datetime import timedelta
from functools import partial

import torch
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from deepcoder_trainer import broadcast
from deepcoder_trainer.broadcast import BroadcastGroup, GroupLost, buckets, placed
from deepcoder_trainer.types import BroadcastWeights, TensorShape

log = logging.getLogger(__name__)


class WeightSender:
    """Acts as rank 0 in each sampler's broadcast group."""

    def __init__(self, host: str, workers: int, device: torch.device) -> None:
        """`workers` is the number of workers per sampler."""
        # Port 0: the store itself binds a free port, so no other process can take it in between.
        timeout = timedelta(seconds=broadcast.JOIN_SECONDS)
        self._store = TCPStore(host, 0, None, is_master=True, timeout=timeout, wait_for_workers=False)
        self._host, self._size, self._device = host, 1 + workers, device
        self._groups: dict[str, BroadcastGroup] = {}
        self._lost: set[str] = set()
        """Names that are never used again: workers may still wait in such a group for their deadline."""

    def offer(self, tensors: Sequence[TensorShape]) -> BroadcastWeights:
        """Return the description of a broadcast of these tensors, with the address at which samplers join."""
        return BroadcastWeights(self._host, self._store.port, tuple(tensors))

    def send(self, receivers: Sequence[str], weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> list[str]:
        """Broadcast the weights to the samplers of these names. Return the names of those that are lost.

        `weights` is always exhausted, because gathering each tensor is collective.
        """
        self._meet(receivers)
        for buffer in _filled(weights, dtype, self._device):
            under_way = []
            for group in list(self._groups.values()):
                try:
                    under_way.append((group, group.begin(buffer)))
                except GroupLost as error:
                    self._give_up(group, error)
            since = time.monotonic()  # one deadline for all groups, so that several hanging ones do not add up
            for group, work in under_way:
                try:
                    group.finish(work, since)
                except GroupLost as error:
                    self._give_up(group, error)
        return [name for name in receivers if name not in self._groups]

    def close(self) -> None:
        """Leave all groups."""
        while self._groups:
            self._groups.popitem()[1].close()

    def _meet(self, receivers: Sequence[str]) -> None:
        for name in self._groups.keys() - set(receivers):  # samplers that were or will be replaced
            self._groups.pop(name).close()
        new = [name for name in receivers if name not in self._groups and name not in self._lost]
        joining = {name: _in_background(partial(self._met, name)) for name in new}
        wait(joining.values(), timeout=2 * broadcast.JOIN_SECONDS)
        for name, future in joining.items():
            group = future.result() if future.done() else None
            if group is not None:
                self._groups[name] = group
            else:  # its thread may still be joining; if it succeeds, it leaves the group again
                self._lost.add(name)
                future.add_done_callback(_left)

    def _met(self, name: str) -> BroadcastGroup | None:
        try:
            group = BroadcastGroup(self._store, name, 0, self._size, self._device)
            try:
                group.connect()
            except GroupLost:
                group.close()
                raise
        except GroupLost as error:
            log.warning("sampler left without weights: %s", error)
            return None
        return group

    def _give_up(self, group: BroadcastGroup, error: GroupLost) -> None:
        log.warning("sampler left without weights: %s", error)
        del self._groups[group.name]
        self._lost.add(group.name)
        group.close()


def _in_background(call: Callable[[], BroadcastGroup | None]) -> Future[BroadcastGroup | None]:
    """Run a call that may never return in a daemon thread, so that not even the end of the process waits for it."""
    future: Future[BroadcastGroup | None] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="joining a sampler", daemon=True).start()
    return future


def _left(future: Future[BroadcastGroup | None]) -> None:
    """Leave a group that was formed after its deadline."""
    if future.exception() is None and (group := future.result()) is not None:
        group.close()


def _filled(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """Yield one filled buffer, [n] uint8 on `device`, per bucket of `buckets`. Weights are consumed one at a time."""
    waiting: list[tuple[str, Tensor]] = []

    def shapes() -> Iterator[TensorShape]:
        for name, value in weights:
            waiting.append((name, value))
            yield name, tuple(value.shape)

    for size, bucket in buckets(shapes(), dtype):
        buffer = torch.empty(size, dtype=torch.uint8, device=device)
        for place in bucket:
            name, value = waiting.pop(0)
            assert name == place[0]
            placed(buffer, *place[1:]).copy_(value)
        yield buffer
