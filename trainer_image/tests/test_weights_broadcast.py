"""Weights by broadcast from the learner to samplers: whole for all who are there, and nobody's loss is another's.

What runs here is what runs between GPUs, on gloo in the place of NCCL, whose own part is held to torch's signatures.
"""

from __future__ import annotations

import ast
import inspect
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lazy_modules import LazyModule

from deepcoder_trainer.types import BroadcastWeights

if TYPE_CHECKING:
    from deepcoder_trainer.broadcast import BroadcastGroup
    from deepcoder_trainer.learner.weight_sender import WeightSender

torch = LazyModule("torch")
c10d = LazyModule("torch._C._distributed_c10d")

SHAPES = [("a", (3, 5)), ("b", (7,)), ("scalar", ()), ("c", (64, 64)), ("d", (2, 2))]


@pytest.fixture(autouse=True)
def in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepcoder_trainer import broadcast

    monkeypatch.setattr(broadcast, "BUCKET_BYTES", 1024)


@pytest.fixture
def sender() -> Iterator[WeightSender]:
    from deepcoder_trainer.learner.weight_sender import WeightSender

    made = WeightSender("127.0.0.1", 1, torch.device("cpu"))
    yield made
    made.close()


def weights(version: int) -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(version)
    return [(name, torch.randn(shape).to(torch.bfloat16)) for name, shape in SHAPES]


class Worker:
    """A sampler's one worker, as `sampler.weights` has it."""

    def __init__(
        self,
        offer: BroadcastWeights,
        name: str,
        *,
        leaves_after: int | None = None,
        hangs_after: int | None = None,
    ) -> None:
        self.offer, self.name = offer, name
        self.leaves_after, self.hangs_after = leaves_after, hangs_after
        self.goes_on = threading.Event()
        self.group: BroadcastGroup | None = None

    def receive(self) -> dict[str, torch.Tensor]:
        from deepcoder_trainer.broadcast import BroadcastGroup, GroupLost, buckets, placed

        if self.group is None:
            store = c10d.TCPStore(
                self.offer.host, self.offer.port, None, is_master=False, timeout=timedelta(seconds=30)
            )
            self.group = BroadcastGroup(store, self.name, 1, 2, torch.device("cpu"))
            self.group.connect()
        found = {}
        for count, (size, bucket) in enumerate(buckets(self.offer.tensors, torch.bfloat16)):
            if count == self.leaves_after:
                self.group = None  # its sockets close, as those of a process that ends
                raise GroupLost("it left")
            if count == self.hangs_after:
                self.goes_on.wait(60)  # its sockets stay open: nobody is told
                self.group = None
                raise GroupLost("it hung")
            buffer = torch.empty(size, dtype=torch.uint8)
            self.group.finish(self.group.begin(buffer))
            found |= {name: placed(buffer, *place).clone() for name, *place in bucket}
        return found


def receiving(worker: Worker) -> Future[dict[str, torch.Tensor]]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(worker.receive)
    pool.shutdown(wait=False)
    return future


def equal(found: dict[str, torch.Tensor], sent: list[tuple[str, torch.Tensor]]) -> bool:
    return [*found] == [name for name, _ in sent] and all(torch.equal(found[name], value) for name, value in sent)


def test_both_sides_cut_the_same_buckets_and_each_tensor_lies_in_one() -> None:
    from deepcoder_trainer.broadcast import buckets

    found = list(buckets(SHAPES, torch.bfloat16))
    assert [[place[0] for place in bucket] for _, bucket in found] == [["a", "b", "scalar"], ["c"], ["d"]]
    for size, bucket in found:
        ends = [begin + 2 * torch.Size(shape).numel() for _, _, shape, begin in bucket]
        assert [begin for *_, begin in bucket] == [0, *(-(-end // 256) * 256 for end in ends[:-1])]
        assert size >= ends[-1]
    assert found[1][0] >= 2 * 64 * 64, "a tensor that is larger than a bucket has one of its own"
    assert list(buckets([], torch.float32)) == []


def test_all_samplers_get_all_weights_update_after_update(sender: WeightSender) -> None:
    offer = sender.offer(SHAPES)
    workers = [Worker(offer, f"sampler-{n}") for n in (1, 2, 3)]
    for version in (1, 2):
        receivers = [receiving(worker) for worker in workers]
        assert sender.send([w.name for w in workers], weights(version), torch.bfloat16) == []
        assert all(equal(r.result(30), weights(version)) for r in receivers)


def test_weights_are_cast_to_the_samplers_format(sender: WeightSender) -> None:
    worker = Worker(sender.offer(SHAPES), "sampler-1")
    receiver = receiving(worker)
    sender.send([worker.name], [(name, value.double()) for name, value in weights(1)], torch.bfloat16)
    assert equal(receiver.result(30), weights(1))


def test_a_sampler_that_dies_while_it_receives_costs_the_others_nothing_and_another_takes_its_place(
    sender: WeightSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepcoder_trainer import broadcast
    from deepcoder_trainer.broadcast import GroupLost

    monkeypatch.setattr(broadcast, "BUCKET_SECONDS", 5.0)
    offer = sender.offer(SHAPES)
    lives, dies = Worker(offer, "sampler-1"), Worker(offer, "sampler-2", leaves_after=1)
    receivers = [receiving(lives), receiving(dies)]
    assert sender.send([lives.name, dies.name], weights(1), torch.bfloat16) == [dies.name]
    assert equal(receivers[0].result(30), weights(1))
    with pytest.raises(GroupLost):
        receivers[1].result(30)

    joins = Worker(offer, "sampler-3")
    receivers = [receiving(lives), receiving(joins)]
    assert sender.send([lives.name, joins.name], weights(2), torch.bfloat16) == []
    assert all(equal(r.result(30), weights(2)) for r in receivers)
    assert sender.send([dies.name], weights(3), torch.bfloat16) == [dies.name], "nobody is met by that name again"


def test_samplers_that_hang_cost_the_healthy_ones_nothing(
    sender: WeightSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepcoder_trainer import broadcast

    monkeypatch.setattr(broadcast, "BUCKET_SECONDS", 3.0)
    monkeypatch.setattr(broadcast, "RECEIVE_SECONDS", 5.5)  # less than waiting for one after the other would take
    offer = sender.offer(SHAPES)
    lives, *hang = Worker(offer, "sampler-1"), *(Worker(offer, f"sampler-{n}", hangs_after=1) for n in (2, 3))
    receivers = [receiving(worker) for worker in (lives, *hang)]
    began = time.monotonic()
    lost = sender.send(["sampler-1", "sampler-2", "sampler-3"], weights(1), torch.bfloat16)
    assert lost == ["sampler-2", "sampler-3"]
    assert time.monotonic() - began > 2.9
    assert equal(receivers[0].result(30), weights(1)), "it waits for less than one after the other would take"
    for worker in hang:
        worker.goes_on.set()


def test_a_sampler_that_never_comes_or_comes_and_hangs_is_given_up_before_those_that_wait_give_up(
    sender: WeightSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepcoder_trainer import broadcast
    from deepcoder_trainer.broadcast import BroadcastGroup

    offer = sender.offer(SHAPES)
    lives = Worker(offer, "sampler-1")
    first = receiving(lives)
    assert sender.send(["sampler-1"], weights(1), torch.bfloat16) == []
    assert equal(first.result(30), weights(1))
    monkeypatch.setattr(broadcast, "JOIN_SECONDS", 2.0)  # of those that come from now on
    monkeypatch.setattr(broadcast, "BUCKET_SECONDS", 2.0)
    hangs = c10d.TCPStore(offer.host, offer.port, None, is_master=False, timeout=timedelta(seconds=30))
    met: Future[BroadcastGroup] = Future()  # held: its sockets stay open
    threading.Thread(
        target=lambda: met.set_result(BroadcastGroup(hangs, "sampler-3", 1, 2, torch.device("cpu"))), daemon=True
    ).start()
    second = receiving(lives)  # it waits from now on, as long as the sender waits for the others
    lost = sender.send(["sampler-1", "sampler-2", "sampler-3"], weights(2), torch.bfloat16)
    assert lost == ["sampler-2", "sampler-3"]
    assert equal(second.result(30), weights(2))
    met.result(30).close()


def test_each_deadline_is_shorter_than_the_one_that_waits_for_it() -> None:
    from deepcoder_trainer import broadcast
    from deepcoder_trainer.learner.group import Deadlines
    from deepcoder_trainer.sampler.group import UPDATE_SECONDS

    assert 2 * broadcast.JOIN_SECONDS + broadcast.BUCKET_SECONDS < broadcast.RECEIVE_SECONDS
    assert broadcast.RECEIVE_SECONDS + 2 * broadcast.BUCKET_SECONDS < UPDATE_SECONDS < Deadlines().state


def test_a_learner_that_stops_sending_is_found_out_in_time(
    sender: WeightSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepcoder_trainer import broadcast
    from deepcoder_trainer.broadcast import GroupLost

    monkeypatch.setattr(broadcast, "RECEIVE_SECONDS", 0.5)
    worker = Worker(sender.offer(SHAPES), "sampler-1")
    receiver = receiving(worker)
    sender._meet([worker.name])
    with pytest.raises(GroupLost, match="sampler-1"):
        receiver.result(30)


def test_what_is_asked_of_nccl_is_what_torch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch for CPUs has no NCCL: its place is taken by what torch's own stubs say of it."""
    from torch._C import _distributed_c10d as c10d

    from deepcoder_trainer import broadcast
    from deepcoder_trainer.broadcast import BroadcastGroup

    stubs = ast.parse((Path(torch.__file__).parent / "_C/_distributed_c10d.pyi").read_text())
    [stub] = [node for node in stubs.body if isinstance(node, ast.ClassDef) and node.name == "ProcessGroupNCCL"]
    methods = {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert "abort" in methods
    parameters = [
        inspect.Parameter(each.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in methods["__init__"].args.args
    ]
    taken = inspect.Signature(parameters)
    assert "_timeout" in dir(c10d.Backend.Options)
    made = []

    class Nccl:
        class Options:
            _timeout = timedelta()

        def __init__(self, *args: Any) -> None:
            made.append((taken.bind(self, *args).arguments, os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"]))

    monkeypatch.setattr(c10d, "ProcessGroupNCCL", Nccl, raising=False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: threading.Lock())
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", raising=False)
    store = c10d.HashStore()
    c10d.PrefixStore("sampler-1", store).set("rank-0", "here")
    group = BroadcastGroup(store, "sampler-1", 1, 2, torch.device("cuda", 0))
    [(arguments, watchdog)] = made
    assert (arguments["rank"], arguments["size"]) == (1, 2)
    assert arguments["options"]._timeout.total_seconds() > broadcast.RECEIVE_SECONDS
    assert watchdog == "0", "the process outlives a peer that is lost"
    assert "TORCH_NCCL_ASYNC_ERROR_HANDLING" not in os.environ, "other groups keep torch's own way"
    group.close()


@pytest.mark.vllm
def test_a_worker_joins_the_learner_without_the_nccl_settings_that_vllm_pins_for_batch_invariance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NCCL does not reconcile them between ranks, and the learner has none of them: both would wait for each other."""
    from types import SimpleNamespace

    from vllm.utils import nccl

    from deepcoder_trainer.sampler import weights as worker_side

    joined: list[str | None] = []

    class Group:
        def __init__(self, *_: Any) -> None:
            joined.append(os.environ.get("NCCL_MAX_NCHANNELS"))

        def connect(self) -> None:
            joined.append(os.environ.get("NCCL_MAX_NCHANNELS"))

    monkeypatch.setenv("NCCL_MAX_NCHANNELS", "8")  # as a user may set it for all pods
    monkeypatch.setenv("NCCL_NO_CACHE", "")
    monkeypatch.setattr(nccl, "_unpinned_env", None)
    monkeypatch.setattr(nccl, "_nccl_has_no_cache", lambda: True)  # as of NCCL 2.29.7, which the CUDA image has
    monkeypatch.setattr(worker_side, "BroadcastGroup", Group)
    nccl.pin_nccl_env({"NCCL_MAX_NCHANNELS": "1"})
    store = c10d.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
    transfer = object.__new__(worker_side.SharedFileWeightTransfer)
    transfer.device = torch.device("cpu")
    transfer.parallel_config = SimpleNamespace(rank=0, world_size=1)
    transfer._receive("127.0.0.1", store.port, "sampler-1", [], "bfloat16")
    assert joined == ["8", "8"]
    assert os.environ["NCCL_MAX_NCHANNELS"] == "1", "the worker's own communicators keep it"


def test_the_learner_takes_part_in_gathering_whoever_is_lost(sender: WeightSender) -> None:
    gathered = []

    def whole() -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in weights(1):
            gathered.append(name)
            yield name, value

    assert sender.send([], whole(), torch.bfloat16) == []
    assert gathered == [name for name, _ in SHAPES]
