"""What a deterministic run goes on with has to be what it began with: ranks, and the threads that each adds up with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from checkpoint_saving import save

from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.manifest import ComputeThreads, Manifest
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.errors import ConfigMismatch
from deepcoder_trainer.checkpoint.reader import ResumePoint, find_resume_point
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.checkpoint.writer import CheckpointWriter
from deepcoder_trainer.running.exit_records import failed


class Resumes:
    """Saves with so many threads, and resumes with others."""

    def __init__(self, tmp_path: Path, make_config: Callable, make_recipe: Callable, make_learner: Callable) -> None:
        self._tmp_path, self._make_config, self._recipe, self._learner = (
            tmp_path,
            make_config,
            make_recipe,
            make_learner,
        )

    def config(self, *, learners: int, deterministic: bool) -> StageConfig:
        return self._make_config(recipe=self._recipe(deterministic=deterministic), learners=learners)

    async def save(self, *, deterministic: bool) -> Manifest:
        config = self.config(learners=2, deterministic=deterministic)
        threads = ComputeThreads(learners=[4, 4], samplers=[2, 3]) if deterministic else None
        writer = CheckpointWriter(config, self._learner(), workdir=self._tmp_path / "w", threads=threads)
        await writer.claim()
        await save(writer, PipelineState(step=1, total_steps=1, version=1, next_group_id=1), metrics={})
        await writer.wait()
        return Manifest.from_json((self._tmp_path / "store/short/step-000001.a001" / MANIFEST).read_bytes())

    async def resume(
        self,
        *,
        deterministic: bool,
        learners: int = 2,
        threads: Sequence[int] = (4, 4),
        samplers: Sequence[int] = (2, 3),
    ) -> ResumePoint | None:
        config = self.config(learners=learners, deterministic=deterministic)
        now = ComputeThreads(learners=list(threads), samplers=list(samplers)) if deterministic else None
        return await find_resume_point(config, self._learner(), workdir=self._tmp_path / "r", threads=now)


@pytest.fixture
def resumes(tmp_path: Path, make_config: Callable, make_recipe: Callable, make_learner: Callable) -> Resumes:
    return Resumes(tmp_path, make_config, make_recipe, make_learner)


async def test_a_deterministic_run_goes_on_with_the_same_ranks_and_threads(resumes: Resumes) -> None:
    stored = await resumes.save(deterministic=True)
    assert (stored.world_size, stored.compute_threads) == (2, ComputeThreads(learners=[4, 4], samplers=[2, 3]))
    assert await resumes.resume(deterministic=True) is not None


@pytest.mark.parametrize(
    ("now", "field", "words"),
    [
        ({"learners": 4}, "stage.resources.learners", "written by 2 learner ranks, this attempt has 4.*stage 2 again"),
        (
            {"threads": (1, 1)},
            "OMP_NUM_THREADS",
            "learner ranks with 4 CPU threads each, here they have 1.*OMP_NUM_THREADS to 4",
        ),
        ({"threads": (4, 2)}, "OMP_NUM_THREADS", "learner ranks with 4 CPU threads each, here they have 4, 2"),
        ({"samplers": (3, 2)}, "OMP_NUM_THREADS", "samplers with 2, 3 CPU threads each, here they have 3, 2"),
        ({"samplers": (2,)}, "stage.resources.samplers", "with 2 samplers, this attempt has 1.*stage 2 again"),
    ],
    ids=lambda v: v if isinstance(v, str) and v[0].isalpha() and " " not in v else "",
)
async def test_with_others_it_stops_and_says_what_to_set(
    now: dict[str, Any], field: str, words: str, resumes: Resumes
) -> None:
    await resumes.save(deterministic=True)
    with pytest.raises(ConfigMismatch, match=words) as e:
        await resumes.resume(deterministic=True, **now)
    record = failed(e.value, 0)
    assert (record.code, record.field) == (64, field)


@pytest.mark.parametrize("now", [{"learners": 4}, {"learners": 1}, {"threads": (1, 1)}], ids=str)
async def test_any_other_run_goes_on_with_whatever_there_is(now: dict[str, Any], resumes: Resumes) -> None:
    stored = await resumes.save(deterministic=False)
    assert (stored.world_size, stored.compute_threads) == (2, None)
    assert await resumes.resume(deterministic=False, **now) is not None


async def test_a_checkpoint_that_says_nothing_of_threads_is_gone_on_from(resumes: Resumes, tmp_path: Path) -> None:
    stored = await resumes.save(deterministic=True)
    path = tmp_path / "store/short/step-000001.a001" / MANIFEST
    path.write_bytes(stored.model_copy(update={"compute_threads": None}).to_json())
    assert await resumes.resume(deterministic=True, threads=(1, 1)) is not None


async def test_a_checkpoint_that_says_the_most_of_any_rank_is_held_to_that(resumes: Resumes, tmp_path: Path) -> None:
    stored = await resumes.save(deterministic=True)
    path = tmp_path / "store/short/step-000001.a001" / MANIFEST
    path.write_bytes(stored.model_copy(update={"compute_threads": 4}).to_json())
    assert await resumes.resume(deterministic=True, threads=(4, 2), samplers=(9,)) is not None
    with pytest.raises(ConfigMismatch, match="with 4 CPU threads each, here they have 2"):
        await resumes.resume(deterministic=True, threads=(2, 2))
