"""Runs an evaluation from the command line: judges, engines or response files, a working folder and a progress bar.

It needs nothing of an attempt, neither a claim nor an exit record, because results are found by their key alone. A stop
(Ctrl-C, SIGTERM) ends the evaluation after everything known so far has been stored.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deepcoder_contracts.fit import Names
from deepcoder_contracts.layout import evaluation_dir
from deepcoder_contracts.learner_memory import element_bytes
from deepcoder_contracts.model_shape import parameters
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.background import Background, abandonable, first_cause
from deepcoder_trainer.checkpoint.opening import open_run_storage
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.cluster import connect_ray
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.answers import read_answers
from deepcoder_trainer.evaluation.commit import Evaluated
from deepcoder_trainer.evaluation.context import EvaluationContext
from deepcoder_trainer.evaluation.results import EvaluationResults
from deepcoder_trainer.evaluation.run import evaluate_given, run_evaluate_stage
from deepcoder_trainer.evaluation.stored_results import read_evaluation
from deepcoder_trainer.judge.connect import open_judge
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.modelconfig import read_model_config
from deepcoder_trainer.plan.check import check
from deepcoder_trainer.rollout.answers import AnswerVerifier
from deepcoder_trainer.rollout.reward import JudgeReward
from deepcoder_trainer.shapes import model_shape
from deepcoder_trainer.stopping import cancelled_by_signals
from deepcoder_trainer.tokenizer import load_tokenizer
from deepcoder_trainer.types import Generation, GenerationRequest, WeightRefs
from deepcoder_trainer.workdir import Workdir


async def evaluate(
    config: StageConfig, judge: LocalJudge | None, responses: Mapping[str, Path], names: Names, *, again: bool = False
) -> Evaluated:
    """Measure the stage's model, or the given responses. The results are then in storage.

    Errors call the settings by `names`.
    """
    async with AsyncExitStack() as stack:
        background = Background()
        stack.push_async_callback(background.close)
        main = asyncio.create_task(_evaluate(config, judge, responses, names, stack, background, again=again))
        failures: list[BaseException] = []

        def fail(error: BaseException) -> None:
            failures.append(error)
            main.cancel()

        try:
            with cancelled_by_signals(main):
                return await background.beside(_result(main), fail)
        except asyncio.CancelledError:
            if failures:
                raise failures[0] from None
            raise
        except ExceptionGroup as group:
            raise first_cause(group) from None


def stored_results(config: StageConfig, key: str) -> EvaluationResults:
    """Return committed results."""
    return read_evaluation(open_run_storage(config.storage), evaluation_dir(key))[1]


async def _result(task: asyncio.Task[Evaluated]) -> Evaluated:
    return await task


async def _evaluate(
    config: StageConfig,
    judge: LocalJudge | None,
    responses: Mapping[str, Path],
    names: Names,
    stack: AsyncExitStack,
    background: Background,
    *,
    again: bool,
) -> Evaluated:
    client = await stack.enter_async_context(open_judge(config.judge, config.run, judge))
    background.loop(client.run())
    answers = AnswerVerifier()
    stack.push_async_callback(answers.close)
    context = EvaluationContext(
        config=config,
        sampler=_NoSampler(),
        reward=JudgeReward(client, answers),
        store=open_run_storage(config.storage),
        sources=Sources(),
        tokenizer=_NoTokenizer(),
        workdir=stack.enter_context(Workdir("evaluate")),
        dtype=config.recipe.precision.dtype,
        judge_version=client.version,
        max_memory_mb=client.max_memory_mb,
        again=again,
        advance=stack.enter_context(_Bars()).advance,
        names=names,
    )
    if responses:
        return await evaluate_given(context, await asyncio.to_thread(read_answers, responses))
    from deepcoder_trainer.sampler.start import start_samplers

    model_dir = await abandonable(context.sources.model, config.model)
    model_config = read_model_config(model_dir)
    check(config, model_config, names)
    tokenizer = await abandonable(load_tokenizer, model_dir)
    weights = element_bytes(config.recipe) * parameters(model_shape(model_config))
    await asyncio.to_thread(connect_ray, config.stage.resources, weights)
    sampler = await start_samplers(config, model_dir)
    stack.push_async_callback(sampler.close)
    return await run_evaluate_stage(replace(context, sampler=sampler, tokenizer=tokenizer))


class _Bars:
    """A progress bar for each target and set on a terminal; elsewhere progress is logged."""

    def __init__(self) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._bars = Progress(
            TextColumn("{task.description}"),
            *columns,
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def advance(self, name: str, done: int, total: int) -> None:
        """Set the number of finished samples of a set."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done)


class _NoTokenizer:
    """Used for responses from files, which were sampled elsewhere: tokens are unknown, and no prompt is left out."""

    chat_template = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": []}


class _NoSampler:
    """Placeholder for the sampler if responses come from files; never called."""

    async def generate(self, request: GenerationRequest) -> Generation:
        raise BadConfig("no model is there to answer")

    async def update_weights(self, refs: WeightRefs, version: int) -> None:
        raise BadConfig("no model is there to load weights")

    def release_weights(self) -> None: ...

    async def sleep(self) -> None: ...

    async def wake(self) -> None: ...

    async def close(self) -> None: ...
