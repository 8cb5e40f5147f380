"""What only a CUDA card can show of sampler and learner in turns: memory that is really given back, and weights that
another process reads where they lie. Skipped elsewhere.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from lazy_modules import LazyModule

if TYPE_CHECKING:
    from deepcoder_trainer.learner.rank import LearnerRank

torch = LazyModule("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]


@pytest.fixture
def rank(make_recipe: Callable, make_learner: Callable) -> Any:
    from deepcoder_trainer.learner.rank import LearnerRank

    settings = make_learner(make_recipe(precision="Float32")).rank.settings
    made = LearnerRank(replace(settings, recipe=make_recipe(precision="BFloat16"), accelerators=True), 0, 1)
    yield made
    made.close()


def test_a_parked_learner_leaves_the_card_and_comes_back_to_the_bit(rank: LearnerRank) -> None:
    before = {name: value.to_local().clone().cpu() for name, value in rank._state(optimizer=False).items()}  # type: ignore[attr-defined]
    gc.collect()
    held = torch.cuda.memory_allocated()
    rank.park()
    assert torch.cuda.memory_allocated() < held / 4
    rank.unpark()
    after = rank._state(optimizer=False)
    assert all(torch.equal(value, after[name].to_local().cpu()) for name, value in before.items())  # type: ignore[attr-defined]


def read(weights: Any, answers: Any) -> None:
    """In a process of its own."""
    from deepcoder_trainer.broadcast import placed
    from deepcoder_trainer.sampler.weights import card_of, open_buffer

    device = torch.device("cuda", 0)
    assert card_of(device) == weights.card
    buffer = open_buffer(device, list(weights.handle))
    answers.put([(name, float(placed(buffer, *place).double().sum())) for name, *place in weights.tensors])
    torch.cuda.synchronize()


def test_another_process_on_the_card_reads_the_weights_where_they_lie(rank: LearnerRank) -> None:
    expected = [(name, float(value.double().sum())) for name, value in rank._whole(torch.bfloat16)]
    shared = rank.share_weights()
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=read, args=(shared, answers))
    process.start()
    found = answers.get()
    process.join(60)
    assert process.exitcode == 0
    assert found == expected
    rank.park()
