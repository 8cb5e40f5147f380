"""The sampler of a curation from the command line: vLLM with one model's weights, set up as for an evaluation.

Ray and torch are imported only when it is opened, because a curation without a model needs neither. Anything that the
model or the machine does not allow raises `BadConfig`, from the same checks as in a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deepcoder_contracts.fit import Names
from deepcoder_contracts.learner_memory import element_bytes
from deepcoder_contracts.model_shape import parameters
from deepcoder_contracts.recipe import Precision, Recipe
from deepcoder_contracts.stage import (
    Evaluation,
    EvaluationDataset,
    ModelSource,
    StageConfig,
    StageResources,
    StageType,
    Storage,
)
from deepcoder_trainer.curation.sampling import Asked
from deepcoder_trainer.localrun import LocalRun, LocalStage
from deepcoder_trainer.modelconfig import read_model_config
from deepcoder_trainer.plan.check import check
from deepcoder_trainer.types import Sampler


@dataclass(frozen=True)
class Engines:
    """Number and kind of engines."""

    tensor_parallel: int = 1
    count: int = 1
    accelerators: bool = False
    float32: bool = False


def engine_config(model_dir: Path, engines: Engines, asked: Asked, max_prompt_tokens: int, names: Names) -> StageConfig:
    """Return the engines' config: an Evaluate stage with placeholders for problem sets and storage.

    Raises `ValidationError` for a number out of bounds, and `BadConfig`, which calls the settings by `names`, for what
    the model does not allow.
    """
    sets = [EvaluationDataset(name="curation", uri="/dev/null")]
    run = LocalRun(
        name="curate",
        model=ModelSource(uri=str(model_dir.absolute())),
        recipe=Recipe(
            max_prompt_tokens=max_prompt_tokens,
            tensor_parallel=engines.tensor_parallel,
            precision=Precision.FLOAT32 if engines.float32 else Precision.BFLOAT16,
            evaluation_temperature=asked.temperature,
            evaluation_top_p=asked.top_p,
        ),
        stages=[
            LocalStage(
                name="curation",
                type=StageType.EVALUATE,
                context_tokens=asked.max_tokens,
                resources=StageResources(samplers=engines.count, learners=0, accelerators=engines.accelerators),
                evaluate=Evaluation(datasets=sets, targets=["Base"]),
            )
        ],
        storage=Storage(uri="file:///dev/null"),
    )
    config = run.stage_config(0, 1, None)
    check(config, read_model_config(model_dir), names)
    return config


@asynccontextmanager
async def open_engine(config: StageConfig, model_dir: Path) -> AsyncIterator[Sampler]:
    """Yield a sampler with the model's weights, and shut it down at the end."""
    from deepcoder_trainer.cluster import connect_ray
    from deepcoder_trainer.sampler.pretrained import push_pretrained
    from deepcoder_trainer.sampler.start import start_samplers
    from deepcoder_trainer.shapes import model_shape

    weights = element_bytes(config.recipe) * parameters(model_shape(read_model_config(model_dir)))
    # In a pool's thread, which does not end: the processes of our own cluster end with the thread that started them.
    await asyncio.to_thread(connect_ray, config.stage.resources, weights)
    sampler = await start_samplers(config, model_dir)
    try:
        dtype = config.recipe.precision.dtype
        await push_pretrained(sampler, model_dir, 1, dtype)
        yield sampler
    finally:
        await sampler.close()
