"""A learner that gives its memory away between turns: nothing changes but where the bytes are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lazy_modules import LazyModule

from deepcoder_contracts.recipe import Recipe

torch = LazyModule("torch")


def state(rank: Any) -> dict[str, torch.Tensor]:
    from torch.distributed.tensor import DTensor

    return {
        name: (v.to_local() if isinstance(v, DTensor) else v).clone() for name, v in rank._state(optimizer=True).items()
    }


def on_device(rank: Any) -> int:
    from torch.distributed.tensor import DTensor

    return sum((t.to_local() if isinstance(t, DTensor) else t).untyped_storage().nbytes() for t in rank._held())


@pytest.mark.parametrize("settings", [{}, {"precision": "BFloat16"}, {"klCoefficient": 0.1}], ids=str)
async def test_a_learner_that_was_parked_trains_on_to_the_bit(
    make_learner: Callable[..., Any], make_recipe: Callable[..., Recipe], make_batch: Callable[..., Any], settings: dict
) -> None:
    recipe = Recipe.model_validate({**make_recipe().model_dump(by_alias=True), **settings})

    async def trained(*, parks: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
        learner, losses = make_learner(recipe), []
        for seed in range(3):
            losses.append((await learner.train(make_batch(seed)))["loss"])
            if parks:
                await learner.export_weights()
                await learner.park()
                await learner.park()
                assert on_device(learner.rank) == 0
                await learner.unpark()
                await learner.unpark()
        await learner.close()
        return losses, state(learner.rank)

    losses, stayed = await trained(parks=False)
    losses_parked, parked = await trained(parks=True)
    assert losses_parked == losses
    assert all(torch.equal(value, parked[name]) for name, value in stayed.items())
    assert any(name.endswith("exp_avg") and value.abs().sum() > 0 for name, value in stayed.items())


async def test_a_parked_learner_refuses_what_needs_its_weights(
    make_learner: Callable[..., Any], make_batch: Callable[..., Any], tmp_path: Path
) -> None:
    learner = make_learner()
    await learner.park()
    for work in (
        learner.train(make_batch()),
        learner.export_weights(),
        learner.gaps(make_batch()),
        learner.save(str(tmp_path)),
        learner.load(str(tmp_path), optimizer=True),
    ):
        with pytest.raises(RuntimeError, match="parked"):
            await work


async def test_a_save_goes_on_while_the_learner_is_parked(
    make_learner: Callable[..., Any], make_batch: Callable[..., Any], tmp_path: Path
) -> None:
    learner, other = make_learner(), make_learner()
    await learner.train(make_batch())
    expected = state(learner.rank)
    await learner.save(str(tmp_path))
    await learner.park()
    learner.rank.saved(tmp_path).files()
    await other.load(str(tmp_path), optimizer=True)
    loaded = state(other.rank)
    assert all(torch.equal(expected[name], loaded[name]) for name in expected)


async def test_gaps_are_differences_from_the_samplers_log_probabilities(
    make_learner: Callable[..., Any], make_batch: Callable[..., Any]
) -> None:
    learner = make_learner()
    own: dict[tuple[int, int], Any] = {}

    def exact(sample: Any) -> Any:
        from deepcoder_trainer.grpo.pack import assemble, training_sequences
        from deepcoder_trainer.types import Group

        group = Group(0, "p", 0, (sample, sample))
        [sequence, _] = training_sequences([group], learner.rank.recipe)
        own[sample.group_id, sample.index] = learner.rank.logprobs(assemble([sequence]))
        return own[sample.group_id, sample.index]

    assert max(map(abs, await learner.gaps(make_batch(behaviour=exact)))) < 1e-5
    off = lambda s: exact(s) + (0.25 if (s.group_id, s.index) == (2, 1) else 0.0)  # noqa: E731
    assert min(await learner.gaps(make_batch(behaviour=off))) == pytest.approx(-0.25, abs=1e-5)
    none = lambda s: exact(s) - (float("inf") if (s.group_id, s.index) == (1, 0) else 0.0)  # noqa: E731
    assert max(await learner.gaps(make_batch(behaviour=none))) == float("inf")


def test_weights_in_one_buffer_are_found_again_where_it_says() -> None:
    from deepcoder_trainer.learner.weights import in_one_buffer, padded

    weights = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "c": torch.randn(4, 4).t(),
        "d": torch.randn(()),
    }
    buffer, placed = in_one_buffer(weights.items(), padded(w.nbytes for w in weights.values()), torch.device("cpu"))
    assert [name for name, *_ in placed] == list(weights)
    for name, dtype, shape, begin in placed:
        value = weights[name]
        assert begin % 16 == 0
        found = buffer[begin : begin + value.nbytes].view(getattr(torch, dtype)).view(shape)
        assert torch.equal(found, value)
