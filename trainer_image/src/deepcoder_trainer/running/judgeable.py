"""Checks, before anything is sampled, that every problem of a stage can be judged.

Our own judges accept every problem that can be read. A hosted judge does not, and without this check it would end the
attempt at the first problem that it refuses, in an evaluation hours after the start.
"""

from __future__ import annotations

from collections.abc import Iterable

from deepcoder_contracts.stage import JudgeBackend, StageConfig
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.evaluation.benchmarks import load_benchmark
from deepcoder_trainer.judge.backend import Judge, JudgeRefused
from deepcoder_trainer.types import Problem


def refuse_unjudgeable(config: StageConfig, judge: Judge, training: Iterable[Problem], sources: Sources) -> None:
    """Raise JudgeRefused with the dataset, the number of refused problems, the first of them, and how to fix it."""
    if config.judge.backend is not JudgeBackend.TOGETHER:
        return
    _check(judge, training, "dataset")
    for dataset in config.stage.evaluate.datasets if config.stage.evaluate else ():
        problems = load_benchmark(sources.dataset(dataset.uri), dataset).problems
        _check(judge, problems, f"evaluate.datasets[{dataset.name}]")


def _check(judge: Judge, problems: Iterable[Problem], where: str) -> None:
    coded = (problem for problem in problems if problem.answer is None)  # answers are compared without a judge
    refused = [(problem.id, reason) for problem in coded if (reason := judge.refusal(problem)) is not None]
    if refused:
        name, reason = refused[0]
        raise JudgeRefused(
            f"{where}: {len(refused)} problems cannot be judged, the first of them {name}: {reason}",
            field="judge.backend",
        )
