"""Heartbeats to the operator, whose reply may request a drain.

A background task posts the newest state at least every `intervalSeconds`, and at once when something changes; training
never waits for it. The token file is read for every post, because the kubelet rotates it, and so is the CA file,
because the operator's certificate authority changes. One connection is kept between heartbeats. A standby replica of
the operator answers 503; the post is then repeated at once over a new connection, which may reach the leader. Any other
failed post is repeated at the next heartbeat. The durable truth is in storage, so an operator that is down or
unreachable does not affect the run.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Self

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
from deepcoder_trainer.protocols import StepReport
from deepcoder_trainer.runtime_info import RuntimeInfo
from deepcoder_trainer.stopping import Stop
from deepcoder_trainer.telemetry.waits import waits
from deepcoder_trainer.types import Problem

log = logging.getLogger(__name__)

POST_SECONDS = 4.0
"""Deadline of one post including its repetitions, shorter than the interval between heartbeats."""
CURATING_SECONDS = 30.0
"""Period for which a curation announces its remaining submissions. It exceeds the interval between heartbeats, so that
the pool keeps its size."""
SENDS = 3
"""Number of times that a post is sent while standby replicas answer."""


@dataclass
class Progress:
    """Holds the newest state, and sends it in a background task."""

    config: StageConfig
    stop: Stop
    runtime_info: RuntimeInfo = field(default_factory=RuntimeInfo)
    phase: TrainerPhase = TrainerPhase.STARTING
    checkpoint: CheckpointSummary | None = None
    _step: int = 0
    _with_tests: float = 1.0
    """Share of problems whose responses are judged by judges."""
    _metrics: dict[str, float] = field(default_factory=dict)
    _verdicts: dict[str, int] = field(default_factory=dict)
    _phase_seconds: dict[str, float] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _failing: bool = False
    _given_up: bool = False

    def on_phase(self, phase: TrainerPhase) -> None:
        """Send a new phase at once. DRAINING is final, and each reply asks for it."""
        if self.phase not in (phase, TrainerPhase.DRAINING):
            self.phase = phase
            self._changed.set()

    def on_step(self, report: StepReport) -> None:
        """Send the step at once."""
        self._step = report.step
        self._metrics = {name[:128]: value for name, value in report.metrics.items()}
        self._verdicts = dict(report.verdicts)
        self._phase_seconds = dict(report.phase_seconds)
        self._changed.set()

    def curating(self, phase: str, done: int, total: int) -> None:
        """Send the progress of the run's curation with the next heartbeat. May be called from any thread."""
        self._metrics = {f"curation_{phase}_done": float(done), f"curation_{phase}_total": float(total)}

    def evaluated(self, figures: Mapping[str, float]) -> None:
        """Send the result of an Evaluate stage's target with the next heartbeat. May be called from any thread."""
        self._metrics = {**self._metrics, **{name[:128]: value for name, value in figures.items()}}

    def resumed_at(self, step: int) -> None:
        """Set the step from which the stage continues."""
        self._step = step

    def trains_on(self, problems: Sequence[Problem], *, asks_judges: bool = True) -> None:
        """Set the training problems. Mathematics needs no judge, and a custom reward may not use one."""
        with_tests = sum(problem.answer is None for problem in problems) / max(1, len(problems))
        self._with_tests = with_tests if asks_judges else 0.0

    def report(self) -> ProgressReport:
        """Return the current heartbeat."""
        recipe, stage = self.config.recipe, self.config.stage
        seconds = sum(self._phase_seconds.values())
        training = self.phase in (TrainerPhase.TRAINING, TrainerPhase.CHECKPOINTING) and stage.max_steps > self._step
        programs = math.ceil(recipe.prompts_per_step * recipe.group_size * self._with_tests) if training else 0
        if self.phase is TrainerPhase.CURATING:
            figures = self._metrics
            programs = int(figures.get("curation_verify_total", 0) - figures.get("curation_verify_done", 0))
            seconds = CURATING_SECONDS
        expected = ExpectedSubmissions(count=programs, within_seconds=max(seconds, 1.0))
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
            accelerator=self.runtime_info.accelerator,
            sent_at=datetime.now(UTC),
        )

    async def run(self, endpoint: ProgressEndpoint) -> None:
        """Send heartbeats until cancelled."""
        async with _Line(endpoint) as line:
            while True:
                self._changed.clear()
                await self._post(line)
                try:
                    async with asyncio.timeout(endpoint.interval_seconds):
                        await self._changed.wait()
                        await asyncio.sleep(0.2)  # combine changes that follow each other
                except TimeoutError:
                    pass

    async def _post(self, line: _Line) -> None:
        body = self.report().to_json()
        if len(body) > MAX_BODY_BYTES:
            body = self.report().model_copy(update={"metrics": {}}).to_json()
        try:
            reply = await line.post(body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as error:
            if not self._failing:
                log.warning("progress could not be sent, training continues: %s", error)
            self._failing = True
            return
        if self._failing:
            log.info("progress is sent again")
        self._failing = False
        self.runtime_info.image_id = reply.image_id or self.runtime_info.image_id
        if reply.desired is Desired.DRAIN:
            if not self.stop.requested:
                log.info("the operator asks to drain")
            if reply.deadline_seconds == 0 and not self._given_up:
                self._given_up = True
                log.warning("the operator has given this attempt up; what it waits for, innermost first:")
                for place in waits(asyncio.all_tasks()):
                    log.warning("  %s", place)
            limit = reply.deadline_seconds  # it may be shorter than in the last reply
            self.stop.request(limit if limit is not None else self.config.storage.drain_seconds, "Drained")
            self.on_phase(TrainerPhase.DRAINING)


class _Line:
    """The connection to the operator. It is opened again when the CA file changes, and after any failure."""

    def __init__(self, endpoint: ProgressEndpoint) -> None:
        self._endpoint = endpoint
        self._http: aiohttp.ClientSession | None = None
        self._trusted = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._hang_up()

    async def post(self, body: bytes) -> ProgressReply:
        """Send a report and return the reply. Raises the error of the last send, or TimeoutError."""
        try:
            async with asyncio.timeout(POST_SECONDS):
                for sends_left in reversed(range(SENDS)):
                    reply = await self._send(body, standby_is_final=not sends_left)
                    if reply is not None:
                        return reply
                    await self._hang_up()
        except BaseException:
            await self._hang_up()
            raise
        raise AssertionError("unreachable")

    async def _send(self, body: bytes, *, standby_is_final: bool) -> ProgressReply | None:
        """Send once. Return None if a standby replica answered and another one can be tried."""
        token = _read(self._endpoint.token_file)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        http = await self._session()
        async with http.post(self._endpoint.url, data=body, headers=headers, allow_redirects=False) as answer:
            if answer.status == HTTPStatus.SERVICE_UNAVAILABLE and not standby_is_final:
                return None
            answer.raise_for_status()
            return ProgressReply.from_json(await answer.read())

    async def _session(self) -> aiohttp.ClientSession:
        trusted = _read(self._endpoint.ca_file)
        if self._http is None or trusted != self._trusted:
            await self._hang_up()
            connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cadata=trusted))
            self._http, self._trusted = aiohttp.ClientSession(connector=connector, trust_env=False), trusted
        return self._http

    async def _hang_up(self) -> None:
        if self._http is not None:
            http, self._http = self._http, None
            await http.close()


def _read(file: str) -> str:
    return Path(file).read_text().strip()
