"""What only two CUDA cards can show of weights by broadcast: NCCL itself, and that a lost sampler ends nobody else."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import pytest
from lazy_modules import LazyModule

from deepcoder_trainer.types import BroadcastWeights

torch = LazyModule("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("two_gpus")]

SHAPES = [(f"layer.{n}", (1024, 1024)) for n in range(300)]  # 600 MB: several buckets


def weights(version: int) -> list[tuple[str, torch.Tensor]]:
    value = torch.arange(1024 * 1024, device="cuda:0").remainder(97).view(1024, 1024)
    return [(name, (value + version + n).to(torch.bfloat16)) for n, (name, _) in enumerate(SHAPES)]


def receive(offer: BroadcastWeights, name: str, versions: int, answers: Any, dies: bool) -> None:
    """In a process of its own, on the second card."""
    from torch._C._distributed_c10d import TCPStore

    from deepcoder_trainer.broadcast import BroadcastGroup, buckets, placed

    device = torch.device("cuda", 1)
    torch.cuda.set_device(device)
    store = TCPStore(offer.host, offer.port, None, is_master=False, timeout=timedelta(seconds=60))
    group = BroadcastGroup(store, name, 1, 2, device)
    group.connect()
    for _ in range(versions):
        found = []
        for size, bucket in buckets(offer.tensors, torch.bfloat16):
            buffer = torch.empty(size, dtype=torch.uint8, device=device)
            group.finish(group.begin(buffer))
            if dies:
                os._exit(1)
            found += [float(placed(buffer, *place).double().sum()) for _, *place in bucket]
        answers.put(found)


def started(context: Any, *arguments: Any) -> Any:
    process = context.Process(target=receive, args=arguments)
    process.start()
    return process


def test_samplers_get_all_weights_by_nccl_and_one_that_dies_ends_nobody() -> None:
    from deepcoder_trainer.learner.weight_sender import WeightSender

    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    torch.cuda.set_device(0)
    sender = WeightSender("127.0.0.1", 1, torch.device("cuda", 0))
    offer = sender.offer(SHAPES)
    processes = [
        started(context, offer, "sampler-1", 2, answers, False),
        started(context, offer, "sampler-2", 1, answers, True),
    ]
    began = time.monotonic()
    assert sender.send(["sampler-1", "sampler-2"], weights(1), torch.bfloat16) == ["sampler-2"]
    assert answers.get() == [float(value.double().sum()) for _, value in weights(1)]
    assert time.monotonic() - began < 120
    assert sender.send(["sampler-1"], weights(2), torch.bfloat16) == []
    assert answers.get() == [float(value.double().sum()) for _, value in weights(2)]
    sender.close()
    for process in processes:
        process.join(60)


def test_a_sampler_whose_learner_is_silent_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepcoder_trainer import broadcast
    from deepcoder_trainer.broadcast import BroadcastGroup, GroupLost
    from deepcoder_trainer.learner.weight_sender import WeightSender

    monkeypatch.setattr(broadcast, "RECEIVE_SECONDS", 2.0)
    sender = WeightSender("127.0.0.1", 1, torch.device("cuda", 0))
    with pytest.raises(GroupLost):
        BroadcastGroup(sender._store, "sampler-1", 1, 2, torch.device("cuda", 1))
