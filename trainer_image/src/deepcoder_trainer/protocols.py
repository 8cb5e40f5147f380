"""The protocols that the controller depends on, and what it reports about itself.

The loop is written against these protocols. Tests use scripted samplers and learners, benchmarks their own drivers, and
a run uses vLLM, torch and storage.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.types import Group


class SandboxUnavailable(RuntimeError):
    """Judges, the mathematics verifier or a custom reward failed on too many samples of a batch for meaningful group
    statistics."""

    WHERE_TO_LOOK = (
        "see the judges' logs; for mathematics, and for a custom recipe.reward, see this log, which says why answers "
        "could not be compared and how the function failed"
    )


class Checkpoints(Protocol):
    """The part of `CheckpointWriter` that the loop needs."""

    async def copy(self, step: int) -> None:
        """Copy the weights aside and start their upload. Training may continue when this returns."""
        ...

    async def commit(
        self, state: PipelineState, *, metrics: Mapping[str, float], final: bool = False, gate: GateRecord | None = None
    ) -> None:
        """Commit the weights that were copied aside, with the rest of the state, in the background."""
        ...

    async def wait(self) -> object:
        """Wait until the last save is committed. Raises `CheckpointFailed` if that fails."""
        ...

    async def close(self) -> None:
        """Forget weights that were copied aside and will not be committed."""
        ...


@dataclass(frozen=True)
class StepReport:
    """The report of one step."""

    step: int
    """Step of the stage, from 1."""
    total_steps: int
    """The same step, counted over all stages."""
    metrics: Mapping[str, float]
    verdicts: Mapping[str, int]
    phase_seconds: Mapping[str, float]
    """Seconds since the previous report by phase: wait_batch, turn, train, wait_sampled, sync, probe, evaluate,
    checkpoint."""
    groups: tuple[Group, ...]
    """The groups that were trained. Empty in a second report on a step, after an evaluation that an earlier attempt
    left undone."""
    gauges: Mapping[str, float] = field(default_factory=dict)
    """Metrics that depend on wall-clock time, which a resumed run does not reproduce. A name may have a label, as in
    `idle_ratio{role=learner}`."""
    dropped: tuple[Group, ...] = ()
    """Groups that were sampled since the last report and are not trained, because all rewards are equal
    (recipe.refill)."""


class Observer(Protocol):
    """Receives reports. Its methods must return at once and never raise."""

    def on_phase(self, phase: TrainerPhase) -> None:
        """Receive the attempt's new phase."""
        ...

    def on_step(self, report: StepReport) -> None:
        """Receive the report of a finished step."""
        ...


@dataclass(frozen=True)
class Ending:
    """How the loop ended."""

    step: int
    """Step of the newest checkpoint that was committed."""
    drained: bool
    """False: the stage is over (maxSteps, or its gate was met)."""
    gate: GateRecord | None = None


Evaluate = Callable[[int], Coroutine[Any, Any, Mapping[str, float]]]
"""Evaluates the weights that were pushed after a step. Returns figures such as `eval/<dataset>/pass_at_1`."""
