"""The state of a stage, derived from its steps and their figures alone, so that a resumed run decides the same way.

An evaluation is due every `everySteps` steps and at the end. It stays due until it is done, and a stage is over only if
none is due. A stage ends at its last step or when its gate is met. The gate is checked again with the figures of the
final evaluation; if they undo it, the stage continues.
"""

from __future__ import annotations

from collections.abc import Mapping

from deepcoder_contracts.gate import GateRecord, evaluate_gate
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.state import PipelineState

EVALUATED = "evaluated"
"""Name of the history of steps after which an evaluation was made."""


class StageProgress:
    """The steps of a stage so far. Without a state, it is the beginning of a run's first stage."""

    def __init__(
        self, config: StageConfig, state: PipelineState | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """`metrics` are those of the step of `state`."""
        state = state or PipelineState(0, 0, 0, 0)
        self._stage = config.stage
        self._save_each = config.storage.every_steps
        self._history = {name: list(values) for name, values in state.history.items()}
        self._counters = dict(state.counters)
        self.base = state.total_steps - state.step
        """Steps of the earlier stages."""
        self._batch = config.recipe.prompts_per_step
        trained = state.total_steps * self._batch if state.trained_groups is None else state.trained_groups
        self.origin = trained - state.total_steps * self._batch
        """Groups trained in earlier stages, beyond as many steps with this stage's batch size."""
        self.step = state.step
        """Finished steps of the stage."""
        self.metrics = dict(metrics or {})
        """Figures of the newest step, including its evaluation."""

    def trained(self, step: int, metrics: Mapping[str, float], counted: Mapping[str, float]) -> None:
        """Record a finished step. `counted` is added to the totals."""
        self.step, self.metrics = step, dict(metrics)
        for name, value in counted.items():
            self._counters[name] = self._counters.get(name, 0.0) + value
        self._remember({"step": float(step), **metrics})

    def evaluated(self, figures: Mapping[str, float]) -> None:
        """Record an evaluation of the weights after the newest step."""
        self.metrics |= figures
        self._remember({**figures, EVALUATED: float(self.step)})

    def state(self) -> PipelineState:
        """Return the state for a checkpoint of the newest step, without work that is not trained yet."""
        return PipelineState(
            step=self.step,
            total_steps=self.version,
            version=self.version,
            next_group_id=0,
            trained_groups=self.origin + self.version * self._batch,
            history=self.history,
            counters=dict(self._counters),
        )

    @property
    def version(self) -> int:
        """Version of the learner's weights: the number of steps, over all stages, that trained them."""
        return self.base + self.step

    @property
    def totals(self) -> dict[str, float]:
        """Totals over all stages, as figures."""
        return {f"run_{name}": value for name, value in self._counters.items()}

    @property
    def history(self) -> dict[str, tuple[float, ...]]:
        """The history of metrics, for a checkpoint."""
        return {name: tuple(values) for name, values in self._history.items()}

    @property
    def gate(self) -> GateRecord | None:
        """Return the gate's verdict. None without a gate, or while an evaluation is due."""
        return None if self.evaluation_owed else self._verdict()

    @property
    def over(self) -> bool:
        """Whether the stage has ended, including its final evaluation if it has one."""
        return self._at_end and not self.evaluation_owed

    @property
    def save_due(self) -> bool:
        """Whether a checkpoint of the newest step is due."""
        return self._at_end or self.step % self._save_each == 0

    @property
    def evaluation_owed(self) -> bool:
        """Whether an evaluation of the newest step is due and not done."""
        settings = self._stage.evaluate
        if settings is None or self.step == 0 or self._history.get(EVALUATED, [])[-1:] == [self.step]:
            return False
        return self._at_end or (settings.every_steps is not None and self.step % settings.every_steps == 0)

    @property
    def _at_end(self) -> bool:
        gate = self._verdict()
        return self.step >= self._stage.max_steps or (gate is not None and gate.met)

    def _verdict(self) -> GateRecord | None:
        gate = self._stage.promote_when
        return evaluate_gate(gate, self._history) if gate is not None and self.step > 0 else None

    def _remember(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if name in ("step", "reward_mean", "truncated_ratio", EVALUATED) or name.startswith("eval/"):
                self._history.setdefault(name, []).append(value)
