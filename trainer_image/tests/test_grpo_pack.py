"""Advantages by hand-computed values, and packing by its properties."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from deepcoder_contracts.model_shape import ModelShape
from deepcoder_contracts.recipe import Advantage, Overlong
from deepcoder_trainer.grpo.advantage import group_advantages
from deepcoder_trainer.grpo.flops import sequence_flops
from deepcoder_trainer.grpo.pack import assemble, cut, pack, plan_step, split_groups, training_sequences
from deepcoder_trainer.types import Finish, Generation, Group, Outcome, Sample

INF = float("inf")


def group(outcomes: Sequence[tuple[float | None, Finish]], logprobs: Sequence[float] = (-1.0, -2.0)) -> Group:
    samples = [
        Sample(
            group_id=7,
            index=i,
            prompt_ids=np.array([1, 2, 3], np.int32),
            generation=Generation(
                np.arange(10, 10 + len(logprobs), dtype=np.int32), np.array(logprobs, np.float32), finish, "", ()
            ),
            outcome=Outcome(reward, "x", 0.0),
            limit=2,
        )
        for i, (reward, finish) in enumerate(outcomes)
    ]
    return Group(7, "p", 0, tuple(samples))


STOP, LENGTH = Finish.STOP, Finish.LENGTH


def advantages(g: Group, advantage: Advantage = Advantage.STD, overlong: Overlong = Overlong.ZERO_ADVANTAGE) -> list:
    return [a.advantage for a in group_advantages(g, advantage, overlong)]


def test_advantage_divides_by_the_unbiased_standard_deviation() -> None:
    # mean 1/4; unbiased variance (9/16 + 3/16) / 3 = 1/4; std 1/2
    got = advantages(group([(1, STOP), (0, STOP), (0, STOP), (0, STOP)]))
    assert got == pytest.approx([0.75 / (0.5 + 1e-6)] + [-0.25 / (0.5 + 1e-6)] * 3, rel=1e-12)


def test_mean_only_leaves_the_standard_deviation_out() -> None:
    assert advantages(group([(1, STOP), (0, STOP)]), Advantage.MEAN_ONLY) == [0.5, -0.5]


def test_equal_rewards_give_zero_and_stay_in_the_denominator() -> None:
    judged = group_advantages(group([(1, STOP)] * 3), Advantage.STD, Overlong.ZERO_ADVANTAGE)
    assert [a.advantage for a in judged] == [0, 0, 0]
    assert all(a.in_loss for a in judged)


def test_a_truncated_failure_counts_in_the_statistics_under_every_overlong_rule() -> None:
    g = group([(1, STOP), (0, LENGTH), (0, STOP), (1, LENGTH)])
    plain = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    zero = group_advantages(g, Advantage.STD, Overlong.ZERO_ADVANTAGE)
    assert [a.advantage for a in zero] == pytest.approx([plain, 0, -plain, plain])
    assert [a.in_loss for a in zero] == [True] * 4
    dropped = group_advantages(g, Advantage.STD, Overlong.DROP_FROM_MASK)
    assert [a.advantage for a in dropped] == pytest.approx([plain, 0, -plain, plain])
    assert [a.in_loss for a in dropped] == [True, False, True, True]
    assert advantages(g, overlong=Overlong.OFF) == pytest.approx([plain, -plain, -plain, plain])


def test_what_was_cut_off_and_has_a_reward_below_zero_is_a_truncated_failure_too() -> None:
    g = group([(1, STOP), (-1, LENGTH), (-1, STOP), (0.5, LENGTH)])
    given = advantages(g, Advantage.MEAN_ONLY)
    assert given == pytest.approx([1.125, 0, -0.875, 0.625])
    judged = group_advantages(g, Advantage.MEAN_ONLY, Overlong.DROP_FROM_MASK)
    assert [a.in_loss for a in judged] == [True, False, True, True]
    assert advantages(g, Advantage.MEAN_ONLY, Overlong.OFF)[1] == pytest.approx(-0.875)


def test_a_quarantined_sample_is_out_of_statistics_loss_and_denominator() -> None:
    g = group([(1, STOP), (None, STOP), (0, STOP)])
    judged = group_advantages(g, Advantage.STD, Overlong.ZERO_ADVANTAGE)
    alone = advantages(group([(1, STOP), (0, STOP)]))
    assert [judged[0].advantage, judged[2].advantage] == alone
    assert [a.in_loss for a in judged] == [True, False, True]


def test_a_group_with_one_judged_sample_has_nothing_to_compare() -> None:
    assert advantages(group([(1, STOP), (None, STOP)])) == [0, 0]
    assert advantages(group([(None, STOP)] * 2)) == [0, 0]


def test_a_token_without_finite_behaviour_logprob_leaves_the_loss(make_recipe: Callable) -> None:
    g = group([(1, STOP), (0, STOP)], logprobs=(-1.0, -INF, float("nan"), -2.0))
    [step] = plan_step(training_sequences([g], make_recipe()), 16, 1)
    [m] = step.micro_batches
    assert m.mask.tolist() == [True, False, False, True] * 2
    assert step.denominator == 4
    assert np.isfinite(m.behaviour).all()


def test_a_packed_row_says_where_each_target_is_predicted(make_recipe: Callable) -> None:
    sequences = training_sequences([group([(1, STOP), (0, STOP)])], make_recipe())
    m = assemble(sequences)
    assert m.input_ids.tolist() == [1, 2, 3, 10] * 2
    assert m.position_ids.tolist() == [0, 1, 2, 3] * 2
    assert m.cu_seqlens.tolist() == [0, 4, 8]
    assert m.response_index.tolist() == [2, 3, 6, 7]
    assert m.targets.tolist() == [10, 11] * 2


QWEN_14B = ModelShape(48, 5120, 13824, 40, 8, 128, 152064, tied=False)


def flops(lengths: Sequence[int]) -> list[float]:
    return [sequence_flops(QWEN_14B, n) for n in lengths]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(20))
def test_packing_loses_nothing_and_keeps_the_budget_and_equal_counts(ranks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 33, rng.integers(0, 60)).tolist()
    plan = pack(lengths, flops(lengths), 32, ranks)
    assert sorted(i for rank in plan for row in rank for i in row) == list(range(len(lengths)))
    assert len(plan) == ranks
    assert len({len(rank) for rank in plan}) == 1
    assert all(sum(lengths[i] for i in row) <= 32 for rank in plan for row in rank)
    assert plan == pack(lengths, flops(lengths), 32, ranks)


def test_packing_needs_about_as_few_rows_as_there_can_be_and_evens_ranks_out() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 512).tolist()
    plan = pack(lengths, lengths, 256, 4)
    assert len(plan[0]) * 4 <= -(-sum(lengths) // 256) + 4
    loads = [sum(lengths[i] for row in rank for i in row) for rank in plan]
    assert max(loads) - min(loads) <= 0.02 * sum(loads) / 4


def test_what_sequences_cost_takes_no_room_from_a_row() -> None:
    assert pack([4, 4, 4, 4], [100.0] * 4, 8, 2) == [[[0, 2]], [[1, 3]]]


@pytest.mark.parametrize("ranks", [2, 8, 16])
@pytest.mark.parametrize(("capacity", "mu", "sigma"), [(34816, 9.3, 0.8), (34816, 9.5, 0.6), (18432, 8.9, 0.7)])
@pytest.mark.parametrize("seed", range(3))
def test_ranks_wait_little_for_each_other_at_every_micro_batch(
    ranks: int, capacity: int, mu: float, sigma: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(mu, sigma, 512), 16, capacity).astype(int).tolist()
    costs = flops(lengths)
    plan = pack(lengths, costs, capacity, ranks)
    spent = np.array([[sum(costs[i] for i in row) for row in rank] for rank in plan])
    assert spent.max(0).sum() <= 1.03 * sum(costs) / ranks
    assert len(plan[0]) <= 1.03 * sum(lengths) / (capacity * ranks) + 2


def test_a_sequence_beyond_the_budget_is_refused_by_name_of_the_setting() -> None:
    with pytest.raises(ValueError, match=r"33 tokens exceeds .* 32 .* recipe\.tokensPerDevice"):
        pack([3, 33], [3, 33], 32, 1)


def test_a_rank_without_work_gets_a_row_that_predicts_nothing(make_recipe: Callable) -> None:
    steps = plan_step(training_sequences([group([(1, STOP), (None, STOP)])], make_recipe()), 64, 2)
    assert [len(s.micro_batches) for s in steps] == [1, 1]
    assert sorted(len(s.micro_batches[0].targets) for s in steps) == [0, 2]
    assert {s.denominator for s in steps} == {2}


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_slices_of_a_row_hold_each_token_and_each_prediction_once(
    parts: int, seed: int, make_batch: Callable, make_recipe: Callable
) -> None:
    row = assemble(training_sequences(make_batch(seed=seed, groups=2).groups, make_recipe()))
    slices = [cut(row, part, parts) for part in range(parts)]
    tokens, width = len(row.input_ids), len(slices[0].input_ids)
    assert {len(s.input_ids) for s in slices} == {len(s.position_ids) for s in slices} == {width}
    assert 0 <= width * parts - tokens < parts
    assert np.concatenate([s.input_ids for s in slices])[:tokens].tolist() == row.input_ids.tolist()
    assert np.concatenate([s.position_ids for s in slices])[:tokens].tolist() == row.position_ids.tolist()
    index = np.concatenate([s.response_index + width * part for part, s in enumerate(slices)])
    assert index.tolist() == row.response_index.tolist()
    for name in ("targets", "behaviour", "advantages", "mask"):
        assert np.concatenate([getattr(s, name) for s in slices]).tolist() == getattr(row, name).tolist(), name
    for s in slices:
        bounds = row.cu_seqlens.tolist() + ([width * parts] if width * parts > tokens else [])
        assert s.cu_seqlens.tolist() == bounds


def test_ranks_that_share_rows_have_the_budget_of_all_of_them(make_recipe: Callable) -> None:
    sequences = training_sequences([group([(1, STOP), (0, STOP)], logprobs=[-1.0] * 6)], make_recipe())
    assert [len(s.input_ids) for s in sequences] == [8, 8]
    with pytest.raises(ValueError, match=r"8 tokens exceeds .* 5 tokens .* recipe\.sequenceParallel"):
        plan_step(sequences, 5, 2, 1)
    steps = plan_step(sequences, 5, 1, 2)
    assert [[len(m.input_ids) for m in step.micro_batches] for step in steps] == [[4, 4], [4, 4]]
    assert [[len(m.targets) for m in step.micro_batches] for step in steps] == [[2, 2], [4, 4]]
    assert {step.denominator for step in steps} == {12}
    assert [[len(m.input_ids) for m in step.micro_batches] for step in plan_step([], 5, 1, 2)] == [[1], [1]]


def test_a_batch_is_split_into_whole_groups_in_order(make_batch: Callable) -> None:
    groups = make_batch(groups=7).groups
    parts = split_groups(groups[::-1], 2)
    assert [[g.group_id for g in part] for part in parts] == [[0, 1, 2], [3, 4, 5, 6]]
    with pytest.raises(ValueError, match="optimizerSteps"):
        split_groups(groups[:1], 2)
