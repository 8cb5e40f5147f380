"""Host memory for what leaves the device: as much as `plan` computes, in pieces that torch does not round up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lazy_modules import LazyModule

from deepcoder_trainer.learner.group import plan_batch

torch = LazyModule("torch")


@pytest.mark.parametrize("nbytes", [0, 1, 1000, 1 << 20, (1 << 20) + 1, 356_515_840, 933_494_784, (5 << 30) + 17])
def test_what_torch_rounds_up_is_less_than_the_smallest_piece(nbytes: int) -> None:
    from deepcoder_trainer.learner.host_bytes import SMALLEST, piece_sizes

    sizes = piece_sizes(nbytes)
    assert sum(sizes) == nbytes
    rounded = sum(
        1 << (size - 1).bit_length() for size in sizes
    )  # as CachingHostAllocator.h of the pinned torch has it
    assert rounded - nbytes < SMALLEST


def test_bytes_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepcoder_trainer.learner import host_bytes

    monkeypatch.setattr(host_bytes, "SMALLEST", 4)
    for count in range(40):
        bytes_, back = torch.arange(count, dtype=torch.uint8), torch.zeros(count, dtype=torch.uint8)
        host = host_bytes.HostBytes(count, pinned=False)
        host.fill(bytes_)
        host.restore(back)
        assert torch.equal(back, bytes_)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(3, 5, 7),
        lambda: torch.randn(3, 5, 7).transpose(0, 2),
        lambda: torch.randn(3, 1, 7).expand(3, 5, 7),
        lambda: torch.randn(9, 8)[2:7, 1:5],
        lambda: torch.randn(9, 8).t()[:, ::2],
        lambda: torch.randn(4, 6).bfloat16()[1:],
        lambda: torch.tensor(2.5),
        lambda: torch.zeros(0),
    ],
    ids=[
        "contiguous",
        "transposed",
        "expanded",
        "cut out",
        "transposed and cut out",
        "halves at an offset",
        "scalar",
        "empty",
    ],
)
def test_a_parked_tensor_comes_back_with_its_values_and_its_layout(
    make: Callable[[], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepcoder_trainer.learner import host_bytes
    from deepcoder_trainer.learner.activations import HostMemory, Parked

    monkeypatch.setattr(host_bytes, "SMALLEST", 16)
    memory, tensor = HostMemory(small=0), make()
    memory.begin_layer()
    parked = memory.park(tensor)
    assert isinstance(parked, Parked)
    back = memory.fetch(parked)
    assert torch.equal(back, tensor)
    assert back.dtype == tensor.dtype
    assert back.stride() == torch.empty_like(tensor).stride()


def test_parked_learners_and_offloaded_layers_are_the_same_to_the_bit_in_many_pieces(
    make_recipe: Callable, make_batch: Callable, make_learner: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepcoder_trainer.learner import host_bytes
    from deepcoder_trainer.learner.activations import prepare

    def gradient(rank: Any) -> torch.Tensor:
        rank.policy.zero_grad()
        rank.accumulate(step, {})
        return torch.cat([p.grad.flatten() for p in rank.policy.parameters()])

    recipe = make_recipe(optimizer_steps=1)
    [[step]] = plan_batch(make_batch(), recipe, 64, 1)
    rank = make_learner(recipe).rank
    expected = gradient(rank)
    rank.policy.zero_grad()
    monkeypatch.setattr(host_bytes, "SMALLEST", 64)
    rank.park()
    rank.unpark()
    prepare(rank.policy, keep_attention=True, offload=True, small=0)
    assert torch.equal(gradient(rank), expected)
