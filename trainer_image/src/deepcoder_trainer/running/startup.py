"""The start of an attempt: tokenizer, problems, samplers and learners, and the state that it continues from.

Invalid files raise `BadConfig`, with the field and how to fix it. Samplers and learners start in parallel. If one of
them fails, the other is ended before the error is raised. On shared devices they start one after the other.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcoder_contracts.stage import OptimizerState, StageConfig
from deepcoder_trainer.checkpoint.reader import ResumePoint
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.cluster import shared_places
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.backend import Judge
from deepcoder_trainer.problems.dataset import load_dataset
from deepcoder_trainer.problems.prompt import EncodedProblems, encode_problems
from deepcoder_trainer.running.judgeable import refuse_unjudgeable
from deepcoder_trainer.sampler.group import SamplerGroup
from deepcoder_trainer.sampler.start import start_samplers
from deepcoder_trainer.types import Learner

if TYPE_CHECKING:
    from deepcoder_trainer.curation.stage import CuratedSet

log = logging.getLogger(__name__)


async def start_both(config: StageConfig, model_dir: Path, stack: AsyncExitStack) -> tuple[SamplerGroup, Learner]:
    """Start samplers and learners, and register their shutdown with `stack`."""
    if config.stage.colocated:
        return await _start_in_turns(config, model_dir, stack)
    from deepcoder_trainer.learner.group import start_learners

    samplers = asyncio.create_task(start_samplers(config, model_dir))
    learners = asyncio.create_task(start_learners(config, model_dir))
    try:
        await asyncio.gather(samplers, learners)
    except BaseException:
        for task in (samplers, learners):
            task.cancel()
        for result in await asyncio.gather(samplers, learners, return_exceptions=True):
            if not isinstance(result, BaseException):
                await result.close()
        raise
    stack.push_async_callback(samplers.result().close)
    stack.push_async_callback(learners.result().close)
    return samplers.result(), learners.result()


async def _start_in_turns(config: StageConfig, model_dir: Path, stack: AsyncExitStack) -> tuple[SamplerGroup, Learner]:
    """Start on shared devices: engines first, because they measure free memory; then they sleep and learners start.

    The stack shuts down whatever was started before a failure or a stop.
    """
    from deepcoder_trainer.learner.group import start_learners

    places = await shared_places(config.stage.resources)
    stack.callback(places.give_back)
    sampler = await start_samplers(config, model_dir, places.each)
    stack.push_async_callback(sampler.close)
    await sampler.sleep()
    learner = await start_learners(config, model_dir, places.each)
    stack.push_async_callback(learner.close)
    return sampler, learner


def load_problems(
    config: StageConfig, sources: Sources, tokenizer: Any, judge: Judge | None, curated: CuratedSet | None = None
) -> tuple[EncodedProblems, str]:
    """Return the training problems with tokenized prompts, and the dataset's digest. `curated` is a set that the run
    curated itself."""
    source = config.dataset
    assert source is not None, "the contract sees to it"
    if curated is not None:
        dataset = load_dataset(curated.path, curated.sha256)
    else:
        assert source.uri is not None, "the contract sees to it"
        dataset = load_dataset(sources.dataset(source.uri), source.sha256)
    try:
        problems = encode_problems(dataset.problems, tokenizer, config.recipe.max_prompt_tokens)
    except ValueError as error:
        raise BadConfig(str(error), field="recipe.maxPromptTokens") from error
    if judge is not None:
        refuse_unjudgeable(config, judge, (encoded.problem for encoded in problems.kept), sources)
    if problems.too_long:
        log.warning(
            "%d of %d problems are left out: their prompts have more than recipe.maxPromptTokens %d tokens",
            len(problems.too_long),
            len(dataset.problems),
            config.recipe.max_prompt_tokens,
        )
    return problems, dataset.digest


async def bring_to(point: ResumePoint | None, learner: Learner, config: StageConfig) -> PipelineState:
    """Load the checkpoint `point` into the learner, if there is one. Return the controller's state."""
    if point is None:
        return PipelineState(step=0, total_steps=0, version=0, next_group_id=0)
    carry = config.stage.optimizer is OptimizerState.CARRY
    await learner.load(point.directory, optimizer=point.own or carry)
    if point.own:
        return point.state
    total, counters = point.state.total_steps, point.state.counters
    trained = point.state.trained_groups
    if trained is None:
        trained = total * config.recipe.prompts_per_step
    return PipelineState(
        0, total_steps=total, version=total, next_group_id=trained, trained_groups=trained, counters=counters
    )
