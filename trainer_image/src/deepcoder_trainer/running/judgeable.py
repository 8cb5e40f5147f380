"""Checks, before anything is sampled, that every problem of a stage can be judged.

A judge that refuses a problem ends the attempt, perhaps hours after the start. What a hosted judge refuses is known at
once. Our own judges accept every problem that can be read, unless its memory limit is above theirs. They may start
later than the trainer, so training problems are checked when the first judge answers, and those of an evaluation when
it has read them (evaluation/run.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from deepcoder_contracts.stage import JudgeBackend, StageConfig
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.benchmarks import load_benchmark
from deepcoder_trainer.judge.backend import Judge, JudgeRefused
from deepcoder_trainer.judge.memory import refuse_above
from deepcoder_trainer.problems.files import DatasetError
from deepcoder_trainer.types import Problem


def refuse_unjudgeable(config: StageConfig, judge: Judge, training: Iterable[Problem], sources: Sources) -> None:
    """Raise JudgeRefused with the dataset, the number of refused problems, the first of them, and how to fix it. Raise
    BadConfig if a set of the evaluation cannot be read."""
    if config.judge.backend is not JudgeBackend.TOGETHER:
        return
    _check(judge, training, "dataset")
    for n, dataset in enumerate(config.stage.evaluate.datasets if config.stage.evaluate else ()):
        field = f"stage.evaluate.datasets.{n}.uri"
        try:
            problems = load_benchmark(sources.dataset(dataset.uri, field=field), dataset).problems
        except DatasetError as error:
            raise BadConfig(f"{dataset.name}: {error}", field=field) from error
        _check(judge, problems, f"evaluate.datasets[{dataset.name}]")


async def refuse_too_large(judge: Judge, training: Iterable[Problem]) -> None:
    """Wait until a judge answers. Raise BadConfig if a training problem asks for more memory than it allows."""
    refuse_above(await judge.max_memory_mb(), training, "dataset")


def _check(judge: Judge, problems: Iterable[Problem], where: str) -> None:
    coded = (problem for problem in problems if problem.answer is None)  # answers are compared without a judge
    refused = [(problem.id, reason) for problem in coded if (reason := judge.refusal(problem)) is not None]
    if refused:
        name, reason = refused[0]
        raise JudgeRefused(
            f"{where}: {len(refused)} problems cannot be judged, the first of them {name}: {reason}",
            field="judge.backend",
        )
