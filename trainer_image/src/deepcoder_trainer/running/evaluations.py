"""The evaluations of a Train stage's weights, and a look at their problem sets when the stage begins.

A set is first needed at the stage's first evaluation, often days later, and a set that cannot be read, or that no judge
accepts, would fail the run then: a run's configuration never changes. So all sets are read in the background while the
stage begins to train, also those of the later stages of a local run. Only what a person must change ends the attempt.
Any other error, such as storage that does not answer, may be gone when the evaluation is due.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.background import abandonable
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.context import EvaluationContext
from deepcoder_trainer.evaluation.problemsets import ProblemSets
from deepcoder_trainer.evaluation.run import evaluate_weights, refuse_too_large

log = logging.getLogger(__name__)


class Evaluations:
    """The evaluations of one attempt's stage. `later` are further stages of a local run that begins."""

    def __init__(self, context: EvaluationContext, later: Sequence[StageConfig] = ()) -> None:
        self._context = context
        self._sets = ProblemSets(context)
        self._later = [replace(context, config=config) for config in later if config.stage.evaluate]

    async def evaluate(self, step: int) -> Mapping[str, float]:
        """See `Evaluate`."""
        return await evaluate_weights(self._context, step, self._sets)

    async def look_ahead(self) -> None:
        """Read all problem sets. Raises BadConfig, with the field, if one cannot be used."""
        if self._context.config.stage.evaluate is not None:
            await self._look_at(self._context, self._sets)
        for context in self._later:
            name = context.config.stage.name
            try:
                await self._look_at(context, ProblemSets(context))
            except BadConfig as error:
                field = error.field and error.field.replace("stage.", f"stages[{name}].", 1)
                raise BadConfig(f"stages[{name}]: {error}", field=field) from error

    async def _look_at(self, context: EvaluationContext, problem_sets: ProblemSets) -> None:
        try:
            await refuse_too_large(context, await abandonable(problem_sets.read))
        except BadConfig:
            raise
        except Exception as error:
            log.warning("the problem sets of stage %s cannot be read now: %s", context.config.stage.name, error)
