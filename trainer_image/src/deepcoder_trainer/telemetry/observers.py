"""Combines several observers into one. An observer that fails affects neither training nor the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from deepcoder_contracts.progress import TrainerPhase
from deepcoder_trainer.protocols import Observer, StepReport

log = logging.getLogger(__name__)


class Observers:
    """Forwards reports to all observers, and logs their errors."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def on_phase(self, phase: TrainerPhase) -> None:
        """Forward the phase."""
        for observer in self._observers:
            try:
                observer.on_phase(phase)
            except Exception:
                log.exception("%s failed", type(observer).__name__)

    def on_step(self, report: StepReport) -> None:
        """Forward the report."""
        for observer in self._observers:
            try:
                observer.on_step(report)
            except Exception:
                log.exception("%s failed", type(observer).__name__)


class Console:
    """Logs one line per step."""

    def __init__(self, stage: str, max_steps: int) -> None:
        self._stage = stage
        self._max_steps = max_steps

    def on_phase(self, phase: TrainerPhase) -> None:
        """Log the phase."""
        log.debug("stage %s: %s", self._stage, phase.value)

    def on_step(self, report: StepReport) -> None:
        """Log the most important metrics."""
        m = report.metrics
        seconds = " ".join(f"{name} {value:.1f}" for name, value in report.phase_seconds.items())
        log.info(
            "%s %d/%d  reward %.3f  truncated %.2f  tokens %.0f  grad %.3f  | %s s",
            self._stage,
            report.step,
            self._max_steps,
            m.get("reward_mean", float("nan")),
            m.get("truncated_ratio", float("nan")),
            m.get("response_tokens_mean", float("nan")),
            m.get("grad_norm", float("nan")),
            seconds,
        )
