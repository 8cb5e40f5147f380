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
    """Judges, mathematics' verifier or a reward of the user's own failed on too much of a batch for its group
    statistics to mean anything."""

    WHERE_TO_LOOK = (
        "see the judges' logs; for mathematics, and for a custom recipe.reward, see this log, which says why answers "
        "could not be compared and how the function failed"
    )


class Checkpoints(Protocol):
    """The part of `CheckpointWriter` that the loop needs."""

    async def copy(self, step: int) -> None:
        """Copy the weights aside and begin to upload them; training may go on afterwards."""
        ...

    async def commit(
        self, state: PipelineState, *, metrics: Mapping[str, float], final: bool = False, gate: GateRecord | None = None
    ) -> None:
        """Commit what was copied aside, with the rest of its state, in the background."""
        ...

    async def wait(self) -> object:
        """Until the last save is committed. Raises `CheckpointFailed` if it is not."""
        ...


@dataclass(frozen=True)
class StepReport:
    """The report of one step."""

    step: int
    """Of the stage, from 1."""
    total_steps: int
    """Of all stages."""
    metrics: Mapping[str, float]
    verdicts: Mapping[str, int]
    phase_seconds: Mapping[str, float]
    """Where the time since the report before went: wait_batch, turn, train, wait_sampled, sync, evaluate,
    checkpoint."""
    groups: tuple[Group, ...]
    """What was trained. Empty in a second report on a step, after an evaluation that an earlier attempt owed."""
    gauges: Mapping[str, float] = field(default_factory=dict)
    """What the machines did meanwhile, by the clock, and so no part of what a resumed run repeats: names of metrics,
    a label as in `idle_ratio{role=learner}`."""
    dropped: tuple[Group, ...] = ()
    """What was sampled since the last report and is not trained, since it would teach nothing (recipe.refill)."""


class Observer(Protocol):
    """Receives reports. Its methods must return at once and never raise."""

    def on_phase(self, phase: TrainerPhase) -> None:
        """The attempt does something else now."""
        ...

    def on_step(self, report: StepReport) -> None:
        """A step is done."""
        ...


@dataclass(frozen=True)
class Ending:
    """How the loop ended."""

    step: int
    drained: bool
    """False: the stage is over (maxSteps, or its gate was met)."""
    gate: GateRecord | None = None


Evaluate = Callable[[int], Coroutine[Any, Any, Mapping[str, float]]]
"""Evaluates the weights that are out after a step; returns `eval/<dataset>/pass_at_1` and the like."""
