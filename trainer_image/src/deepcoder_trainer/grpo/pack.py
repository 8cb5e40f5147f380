"""Packs samples into micro-batches: many sequences in one row of tokens, and the same number of rows on every rank.

Ranks wait for each other at every collective, so the rows that run at the same time must cost about the same. The
number of rows is what first-fit needs, rounded up to a multiple of the ranks. Sequences go, longest first, to the
cheapest row with room; if one finds no room, the plan is tried again with one more row per rank. The rows are then
sorted by cost and dealt out to the ranks in turn. The caller defines the cost, because attention makes one long
sequence more expensive than many short ones with the same number of tokens. A rank without sequences left gets
micro-batches without trainable tokens, which still run forward and backward.

If `sp` ranks share each row, it is cut into equal slices of tokens. Exactly one slice predicts each response token, so
sums over ranks are unaffected. Packing is deterministic: it depends only on lengths, costs and order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from deepcoder_contracts.recipe import Recipe
from deepcoder_trainer.grpo.advantage import group_advantages
from deepcoder_trainer.types import FloatArray, Group, IntArray

BoolArray = npt.NDArray[np.bool_]

Cost = Callable[[int, int], float]
"""(tokens, response tokens among them) of a sequence to its cost, in any unit."""


def tokens_alone(tokens: int, predicted: int) -> float:
    """Return the number of tokens: the relative cost of short sequences, where attention is negligible."""
    return float(tokens)


@dataclass(frozen=True)
class TrainingSequence:
    """One sample as the learner trains on it. Position prompt_tokens - 1 + j of the input predicts target j."""

    input_ids: IntArray
    """[P + T - 1] prompt, then the response without its last token, which predicts nothing."""

    prompt_tokens: int
    """P, at least 1."""

    targets: IntArray
    """[T] response tokens."""

    behaviour: FloatArray
    """[T] the sampler's log-probabilities; 0 where they are not finite."""

    advantage: float
    """A of every response token."""

    mask: BoolArray
    """[T] which tokens are in the loss: those with a finite behaviour log-probability."""


@dataclass(frozen=True)
class MicroBatch:
    """A row of N tokens in S packed sequences, or one rank's slice of n tokens; R positions predict response tokens."""

    input_ids: IntArray
    """[n] tokens."""

    position_ids: IntArray
    """[n] positions, from 0 in each sequence."""

    cu_seqlens: IntArray
    """[S + 1] index of the first token of each sequence in the whole row, then N."""

    response_index: IntArray
    """[R] which of the n positions predict a response token."""

    targets: IntArray
    """[R] the response tokens to predict."""

    behaviour: FloatArray
    """[R] the sampler's log-probabilities of the targets."""

    advantages: FloatArray
    """[R] advantage of each target."""

    mask: BoolArray
    """[R] which targets are in the loss."""


@dataclass(frozen=True)
class OptimizerStep:
    """One rank's share of one optimizer step."""

    micro_batches: tuple[MicroBatch, ...]
    """The same number on all ranks."""

    denominator: int
    """Number of trainable tokens over all ranks and micro-batches."""


def training_sequences(groups: Sequence[Group], recipe: Recipe) -> list[TrainingSequence]:
    """Return the samples that are in the loss, in the order of `groups`.

    Raises ValueError for an empty prompt.
    """
    sequences = []
    for group in groups:
        judged = group_advantages(group, recipe.advantage, recipe.overlong)
        for sample, decision in zip(group.samples, judged, strict=True):
            output = sample.generation.output_ids
            if not decision.in_loss or not len(output):
                continue
            if not len(sample.prompt_ids):
                raise ValueError(f"group {group.group_id}: an empty prompt leaves nothing to predict the response from")
            behaviour = sample.generation.logprobs
            finite = np.isfinite(behaviour)
            sequences.append(
                TrainingSequence(
                    input_ids=np.concatenate([sample.prompt_ids, output[:-1]]).astype(np.int32),
                    prompt_tokens=len(sample.prompt_ids),
                    targets=output.astype(np.int32),
                    behaviour=np.where(finite, behaviour, 0).astype(np.float32),
                    advantage=decision.advantage,
                    mask=finite,
                )
            )
    return sequences


def split_groups(groups: Sequence[Group], parts: int) -> list[list[Group]]:
    """Split groups, in group_id order, into `parts` runs of almost equal length, one per optimizer step.

    Raises ValueError if there are fewer groups than parts.
    """
    ordered = sorted(groups, key=lambda g: g.group_id)
    if len(ordered) < parts:
        raise ValueError(
            f"a batch of {len(ordered)} groups cannot be split into {parts} optimizer steps: lower "
            "recipe.optimizerSteps or raise recipe.promptsPerStep"
        )
    bounds = [len(ordered) * i // parts for i in range(parts + 1)]
    return [ordered[a:b] for a, b in pairwise(bounds)]


def plan_step(
    sequences: Sequence[TrainingSequence], capacity: int, dp: int, sp: int = 1, cost: Cost = tokens_alone
) -> list[OptimizerStep]:
    """Return one entry per rank (rank = dp_rank * sp + sp_rank): its micro-batches, and the common denominator.

    `sp` ranks share each row, so a row may have up to `capacity` * `sp` tokens.
    """
    lengths = [len(s.input_ids) for s in sequences]
    plan = pack(lengths, [cost(len(s.input_ids), len(s.targets)) for s in sequences], capacity * sp, dp)
    denominator = int(sum(int(s.mask.sum()) for s in sequences))
    steps = []
    for bins in plan:
        rows = [assemble([sequences[i] for i in indices]) for indices in bins]
        steps += [OptimizerStep(tuple(cut(row, part, sp) for row in rows), denominator) for part in range(sp)]
    return steps


def pack(lengths: Sequence[int], costs: Sequence[float], capacity: int, ranks: int) -> list[list[list[int]]]:
    """Return the rows of each rank, most expensive first; a row lists indices of sequences.

    A row has at most `capacity` tokens, and all ranks have the same number of rows. Raises ValueError for a sequence
    longer than `capacity`.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if order and lengths[order[0]] > capacity:
        raise ValueError(
            f"a sequence of {lengths[order[0]]} tokens exceeds the budget of {capacity} tokens a micro-batch: "
            "raise recipe.tokensPerDevice (or recipe.sequenceParallel, the devices that share one)"
        )
    tight = _first_fit(order, lengths, capacity)
    count = max(1, -(-len(tight) // ranks)) * ranks
    rows = (
        _to_cheapest(order, lengths, costs, count, capacity)
        or _to_cheapest(order, lengths, costs, count + ranks, capacity)
        or tight + [[] for _ in range(count - len(tight))]
    )
    rows = sorted((sorted(row) for row in rows), key=lambda row: (-sum(costs[i] for i in row), row))
    return [rows[rank::ranks] for rank in range(ranks)]


def _first_fit(order: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for i in order:
        place = next((r for r, free in enumerate(room) if lengths[i] <= free), None)
        if place is None:
            rows.append([])
            room.append(capacity)
            place = len(rows) - 1
        rows[place].append(i)
        room[place] -= lengths[i]
    return rows


def _to_cheapest(
    order: Sequence[int], lengths: Sequence[int], costs: Sequence[float], count: int, capacity: int
) -> list[list[int]] | None:
    """Distribute the sequences over `count` rows of about equal cost. Return None if a sequence finds no room."""
    rows: list[list[int]] = [[] for _ in range(count)]
    room = [capacity] * count
    spent = [0.0] * count
    for i in order:
        place = min((r for r in range(count) if room[r] >= lengths[i]), key=lambda r: (spent[r], r), default=None)
        if place is None:
            return None
        rows[place].append(i)
        room[place] -= lengths[i]
        spent[place] += costs[i]
    return rows


def assemble(sequences: Sequence[TrainingSequence]) -> MicroBatch:
    """Concatenate sequences into one row. Without sequences, the row is one token that predicts nothing."""
    if not sequences:
        none_i, none_f = np.zeros(0, np.int32), np.zeros(0, np.float32)
        one = np.zeros(1, np.int32)
        return MicroBatch(one, one, np.array([0, 1], np.int32), none_i, none_i, none_f, none_f, np.zeros(0, np.bool_))
    lengths = [len(s.input_ids) for s in sequences]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return MicroBatch(
        input_ids=np.concatenate([s.input_ids for s in sequences]),
        position_ids=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        cu_seqlens=starts,
        response_index=np.concatenate(
            [
                np.arange(len(s.targets), dtype=np.int32) + np.int32(start + s.prompt_tokens - 1)
                for s, start in zip(sequences, starts[:-1], strict=True)
            ]
        ),
        targets=np.concatenate([s.targets for s in sequences]),
        behaviour=np.concatenate([s.behaviour for s in sequences]),
        advantages=np.concatenate([np.full(len(s.targets), s.advantage, np.float32) for s in sequences]),
        mask=np.concatenate([s.mask for s in sequences]),
    )


def cut(row: MicroBatch, part: int, parts: int) -> MicroBatch:
    """Return slice `part` of `parts` equal slices of a row, padded with a sequence that predicts nothing."""
    if parts == 1:
        return row
    filling = np.arange(-len(row.input_ids) % parts, dtype=np.int32)
    total = len(row.input_ids) + len(filling)
    width = total // parts
    begin = part * width
    tokens = slice(begin, begin + width)
    mine = (row.response_index >= begin) & (row.response_index < begin + width)
    return MicroBatch(
        input_ids=np.concatenate([row.input_ids, np.zeros_like(filling)])[tokens],
        position_ids=np.concatenate([row.position_ids, filling])[tokens],
        cu_seqlens=np.append(row.cu_seqlens, np.int32(total)) if len(filling) else row.cu_seqlens,
        response_index=row.response_index[mine] - np.int32(begin),
        targets=row.targets[mine],
        behaviour=row.behaviour[mine],
        advantages=row.advantages[mine],
        mask=row.mask[mine],
    )
