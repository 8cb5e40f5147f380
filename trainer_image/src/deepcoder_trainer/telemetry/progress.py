"""Heartbeats to the operator, and its wish to drain in reply.

A background task posts the newest state at least each `intervalSeconds` and at once when something changed; training
never waits for it. The token file is read for every post, since the kubelet rotates it; the CA file likewise, since
the operator's certificate authority does. A post that fails is tried again at the next beat: the durable truth is in
storage, and an operator that is down, on standby (503) or not reachable costs the run nothing.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from pydantic import ValidationError

from deepcoder_contracts.progress import (
    MAX_BODY_BYTES,
    CheckpointSummary,
    Desired,
    ExpectedSubmissions,
    ProgressReply,
    ProgressReport,
    TrainerPhase,
)
from deepcoder_contracts.stage import ProgressEndpoint, StageConfig
from deepcoder_trainer.ports import StepReport
from deepcoder_trainer.stopping import Stop

log = logging.getLogger(__name__)

POST_SECONDS = 4.0
"""Deadline of one post, below the beat."""


@dataclass
class Progress:
    """The newest state, and the task that sends it."""

    config: StageConfig
    stop: Stop
    phase: TrainerPhase = TrainerPhase.STARTING
    checkpoint: CheckpointSummary | None = None
    _step: int = 0
    _metrics: dict[str, float] = field(default_factory=dict)
    _verdicts: dict[str, int] = field(default_factory=dict)
    _phase_seconds: dict[str, float] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _failing: bool = False

    def on_phase(self, phase: TrainerPhase) -> None:
        """Send it at once."""
        if self.phase is not TrainerPhase.DRAINING:
            self.phase = phase
        self._changed.set()

    def on_step(self, report: StepReport) -> None:
        """Send it at once."""
        self._step = report.step
        self._metrics = {name[:128]: value for name, value in report.metrics.items()}
        self._verdicts = dict(report.verdicts)
        self._phase_seconds = dict(report.phase_seconds)
        self._changed.set()

    def resumed_at(self, step: int) -> None:
        """The stage goes on from here."""
        self._step = step

    def report(self) -> ProgressReport:
        """The heartbeat as it would be sent now."""
        recipe, stage = self.config.recipe, self.config.stage
        seconds = sum(self._phase_seconds.values())
        training = self.phase in (TrainerPhase.TRAINING, TrainerPhase.CHECKPOINTING) and stage.max_steps > self._step
        expected = ExpectedSubmissions(
            count=recipe.prompts_per_step * recipe.group_size if training else 0, within_seconds=max(seconds, 1.0)
        )
        return ProgressReport(
            ordinal=self.config.ordinal,
            stage=stage.name,
            phase=self.phase,
            step=self._step,
            max_steps=stage.max_steps,
            metrics=self._metrics,
            verdicts=self._verdicts,
            phase_seconds=self._phase_seconds,
            latest_checkpoint=self.checkpoint,
            expected_submissions=expected,
            sent_at=datetime.now(UTC),
        )

    async def run(self, endpoint: ProgressEndpoint) -> None:
        """Send until cancelled."""
        while True:
            self._changed.clear()
            await self._post(endpoint)
            try:
                async with asyncio.timeout(endpoint.interval_seconds):
                    await self._changed.wait()
                    await asyncio.sleep(0.2)  # changes that come together go together
            except TimeoutError:
                pass

    async def _post(self, endpoint: ProgressEndpoint) -> None:
        body = self.report().to_json()
        if len(body) > MAX_BODY_BYTES:
            body = self.report().model_copy(update={"metrics": {}}).to_json()
        try:
            headers = {"Authorization": f"Bearer {_token(endpoint)}", "Content-Type": "application/json"}
            verify = ssl.create_default_context(cafile=endpoint.ca_file)
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=POST_SECONDS), trust_env=False) as http,
                http.post(endpoint.url, data=body, headers=headers, ssl=verify, allow_redirects=False) as answer,
            ):
                answer.raise_for_status()
                reply = ProgressReply.from_json(await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as error:
            if not self._failing:
                log.warning("progress could not be sent, training goes on: %s", error)
            self._failing = True
            return
        if self._failing:
            log.info("progress is sent again")
        self._failing = False
        if reply.desired is Desired.DRAIN:
            if not self.stop.requested:
                log.info("the operator asks to drain")
            limit = reply.deadline_seconds  # it may have become less since the last reply
            self.stop.request(limit if limit is not None else self.config.storage.drain_seconds, "Drained")
            self.on_phase(TrainerPhase.DRAINING)


def _token(endpoint: ProgressEndpoint) -> str:
    return Path(endpoint.token_file).read_text().strip()
