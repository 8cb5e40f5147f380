"""The controller's part of a checkpoint comes back as it was, samples and verdicts included."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, NewerSchema
from deepcoder_trainer.checkpoint.state import ARRAYS, STATE, PipelineState, load_state, save_state


def assert_same(a: PipelineState, b: PipelineState) -> None:
    for field in (
        "step",
        "total_steps",
        "version",
        "next_group_id",
        "pending",
        "history",
        "counters",
        "trained_groups",
    ):
        assert getattr(a, field) == getattr(b, field)
    assert [g.group_id for g in a.groups] == [g.group_id for g in b.groups]
    for g, h in zip(a.groups, b.groups, strict=True):
        assert (g.problem_id, g.admitted_version) == (h.problem_id, h.admitted_version)
        for s, t in zip(g.samples, h.samples, strict=True):
            assert (s.group_id, s.index, s.limit, s.outcome) == (t.group_id, t.index, t.limit, t.outcome)
            assert (s.generation.finish, s.generation.text, s.generation.versions) == (
                t.generation.finish,
                t.generation.text,
                t.generation.versions,
            )
            for x, y in (
                (s.prompt_ids, t.prompt_ids),
                (s.generation.output_ids, t.generation.output_ids),
                (s.generation.logprobs, t.generation.logprobs),
            ):
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y)


def test_a_finished_batch_comes_back_with_rewards_and_verdicts(make_batch: Callable, tmp_path: Path) -> None:
    state = PipelineState(
        step=3,
        total_steps=13,
        version=14,
        next_group_id=96,
        groups=make_batch(quarantined=0.3).groups,
        pending=(97, 99),
        trained_groups=40,
        history={"reward_mean": (0.25, 0.5, 0.1 + 0.2)},
        counters={"samples": 512.0},
    )
    assert {p.name for p in save_state(state, tmp_path)} == {ARRAYS, STATE}
    assert_same(load_state(tmp_path), state)


def test_a_response_with_half_of_a_surrogate_pair_comes_back_as_it_was(make_batch: Callable, tmp_path: Path) -> None:
    """It is judged again as what it was, and costs no run its checkpoints."""
    [group] = make_batch(groups=1, size=1).groups
    generation = replace(group.samples[0].generation, text="print('\ud83d é')")
    group = replace(group, samples=(replace(group.samples[0], generation=generation),))
    state = PipelineState(1, 1, 1, 4, (group,))
    save_state(state, tmp_path)
    assert_same(load_state(tmp_path), state)


def test_a_state_without_samples_comes_back(tmp_path: Path) -> None:
    state = PipelineState(step=0, total_steps=0, version=0, next_group_id=0)
    save_state(state, tmp_path)
    assert_same(load_state(tmp_path), state)


@pytest.mark.parametrize("damage", ["no arrays", "no state", "cut arrays", "other state", "no such schema"])
def test_files_that_do_not_fit_together_are_damage(damage: str, make_batch: Callable, tmp_path: Path) -> None:
    save_state(PipelineState(1, 1, 1, 4, make_batch().groups), tmp_path)
    if damage == "no arrays":
        (tmp_path / ARRAYS).unlink()
    elif damage == "no state":
        (tmp_path / STATE).unlink()
    elif damage == "cut arrays":
        (tmp_path / ARRAYS).write_bytes((tmp_path / ARRAYS).read_bytes()[:-4])
    else:
        document = json.loads((tmp_path / STATE).read_text())
        if damage == "other state":
            document["groups"].pop()
        else:
            document["schemaVersion"] = 0
        (tmp_path / STATE).write_text(json.dumps(document))
    with pytest.raises(CheckpointDamaged):
        load_state(tmp_path)


def test_a_state_of_a_newer_release_is_no_damage_but_refused_by_name(tmp_path: Path) -> None:
    save_state(PipelineState(step=0, total_steps=0, version=0, next_group_id=0), tmp_path)
    document = json.loads((tmp_path / STATE).read_text())
    (tmp_path / STATE).write_text(json.dumps(document | {"schemaVersion": 2}))
    with pytest.raises(NewerSchema, match="use the trainer image that wrote it"):
        load_state(tmp_path)
