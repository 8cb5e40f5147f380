"""Weights from the learner's first rank to samplers on other GPUs, by broadcast.

It listens at a store, where each sampler's workers meet it by the sampler's name the first time; the group they form
stays until one of them is lost (see `broadcast`). A sampler that is not there, or goes, is left out: its own update
fails too, and it is replaced. Nothing of that keeps the others' weights, nor the learner, which has to take part in
gathering every tensor whatever becomes of those who receive it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from deepcoder_trainer.broadcast import JOIN_SECONDS, BroadcastGroup, GroupLost, buckets, placed
from deepcoder_trainer.types import BroadcastWeights, TensorShape

log = logging.getLogger(__name__)


class WeightSender:
    """Rank 0 of each sampler's group."""

    def __init__(self, host: str, workers: int, device: torch.device) -> None:
        """`workers` is the number of them that a sampler has."""
        # The port is taken by the one who listens on it, from the start: nobody else can come in between.
        timeout = timedelta(seconds=JOIN_SECONDS)
        self._store = TCPStore(host, 0, None, is_master=True, timeout=timeout, wait_for_workers=False)
        self._host, self._size, self._device = host, 1 + workers, device
        self._groups: dict[str, BroadcastGroup] = {}
        self._lost: set[str] = set()
        """Names that nobody is met by again: whoever is left of such a group waits in it, until its time is over."""

    def offer(self, tensors: Sequence[TensorShape]) -> BroadcastWeights:
        """What will be sent, and where to meet."""
        return BroadcastWeights(self._host, self._store.port, tuple(tensors))

    def send(self, receivers: Sequence[str], weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> list[str]:
        """Send all of them to samplers of these names; returns those that are lost."""
        self._meet(receivers)
        for buffer in _filled(weights, dtype, self._device):
            under_way = []
            for group in list(self._groups.values()):
                try:
                    under_way.append((group, group.begin(buffer)))
                except GroupLost as error:
                    self._give_up(group, error)
            for group, work in under_way:
                try:
                    group.finish(work)
                except GroupLost as error:
                    self._give_up(group, error)
        return [name for name in receivers if name not in self._groups]

    def close(self) -> None:
        """Leave all groups."""
        while self._groups:
            self._groups.popitem()[1].close()

    def _meet(self, receivers: Sequence[str]) -> None:
        for name in self._groups.keys() - set(receivers):  # replaced, or on its way to be
            self._groups.pop(name).close()
        new = [name for name in receivers if name not in self._groups and name not in self._lost]
        with ThreadPoolExecutor(max(1, len(new))) as side_by_side:
            for group in side_by_side.map(self._met, new):
                if group is not None:
                    self._groups[group.name] = group

    def _met(self, name: str) -> BroadcastGroup | None:
        try:
            return BroadcastGroup(self._store, name, 0, self._size, self._device)
        except GroupLost as error:
            log.warning("sampler left without weights: %s", error)
            self._lost.add(name)
            return None

    def _give_up(self, group: BroadcastGroup, error: GroupLost) -> None:
        log.warning("sampler left without weights: %s", error)
        del self._groups[group.name]
        self._lost.add(group.name)
        group.close()


def _filled(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """One buffer a bucket, as `buckets` has them; weights are taken one at a time."""
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
