"""The training loop of one stage: who waits for whom.

                     ┌────────────── slot free: trained, and new weights out ◄─────────────┐
                     ▼                                                                     │
   problems ──► admission ──► rollout (one task a group) ──► WorkBuffer ──► batch T ──► learner.train
                     ▲          generate ► extract ► judge        │                        │
                     │             │                              │                 weights, version T
                     │          samplers ◄────────────────────────┼────────────────────────┤
                     └─ version out, batch before it sampled      └─► checkpoint ◄── gate ──┘

- Admission waits for the buffer: a slot, and in strict order the version that the batch is to be sampled with.
- A rollout waits for the samplers, then for the judges. Nothing else waits for a single rollout.
- The learner waits for batch T to be whole. While it trains, batch T+1 is being sampled (maxOffPolicy ≥ 1).
- New weights wait, in strict order, for what is sampled with the old ones; in window order they go out at once.
- A checkpoint is copied aside between two steps and uploaded behind the next. It holds the weights and the finished
  batch that they have not seen, which the resumed run trains first. It waits for that batch's verdicts, as the next
  step would.
- Weights are pushed before the first admission, at a start as at a resume: samplers never answer from weights that
  the learner does not have.

A stop (SIGTERM, the operator, `drain`) ends admission; the step under way is finished, what is in flight is let
finish while time allows, all is saved. When time runs out the newest checkpoint stands. A rollout's failure ends the
loop with that failure. Judges that cannot judge more than 1 % of a batch end it with `SandboxUnavailable`, after the
weights so far are saved.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from deepcoder_contracts.gate import GateRecord, evaluate_gate
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.ports import Checkpoints, Ending, Evaluate, Observer, SandboxUnavailable, StepReport
from deepcoder_trainer.problems.order import problem_index
from deepcoder_trainer.problems.prompt import EncodedProblem
from deepcoder_trainer.rollout.metrics import batch_metrics, is_collapsing, quarantined, verdict_counts
from deepcoder_trainer.rollout.rollout import Admitted, Rollout
from deepcoder_trainer.stopping import Stop
from deepcoder_trainer.types import Batch, Learner, Sampler
from deepcoder_trainer.work import Stopped, Unfinished, WorkBuffer, WorkPolicy

log = logging.getLogger(__name__)

QUARANTINE_RATIO = 0.01
SAVE_RESERVE_SECONDS = 30.0
"""Part of a drain's time that is kept for saving."""


@dataclass
class Controller:
    """One stage's loop. `state` is what it goes on from; a fresh stage has step 0."""

    config: StageConfig
    problems: Sequence[EncodedProblem]
    sampler: Sampler
    learner: Learner
    rollout: Rollout
    checkpoints: Checkpoints
    observer: Observer
    stop: Stop
    state: PipelineState
    evaluate: Evaluate | None = None
    _history: dict[str, list[float]] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _saved_step: int = 0

    async def run(self) -> Ending:
        """Train until the stage is over or a stop is asked for. Raises what ended it otherwise."""
        state, recipe = self.state, self.config.recipe
        self._history = {name: list(values) for name, values in state.history.items()}
        self._saved_step = state.step
        self._base = state.total_steps - state.step
        policy = WorkPolicy(
            recipe.prompts_per_step,
            recipe.max_off_policy,
            recipe.order,
            last_step=self._base + self.config.stage.max_steps,
            deterministic=recipe.deterministic,
        )
        resumed = Unfinished(state.groups, state.pending, state.next_group_id)
        self._work = WorkBuffer(policy, state.total_steps, resumed)
        await self._push(state.total_steps)
        admission = asyncio.create_task(self._admission())
        steps = asyncio.create_task(self._steps())
        stopping = asyncio.create_task(self.stop.wait())
        try:
            await asyncio.wait({steps, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not steps.done():
                self.observer.on_phase(TrainerPhase.DRAINING)
                self._work.close()
                await asyncio.wait({steps}, timeout=self.stop.seconds_left())
            if steps.done():
                return await steps
            log.error("the drain's time is over: leaving with the checkpoint of step %d", self._saved_step)
            return Ending(self._saved_step, drained=True)
        finally:
            for task in (admission, steps, stopping):
                task.cancel()
            await asyncio.gather(admission, steps, stopping, return_exceptions=True)

    async def _steps(self) -> Ending:
        step = self.state.step
        gate: GateRecord | None = None
        metrics: Mapping[str, float] = {}
        while step < self.config.stage.max_steps and not (gate and gate.met):
            self._seconds = {}
            batch = await self._next_batch(step + 1)
            if batch is None:
                return await self._drain(step, metrics, gate)
            step, version = step + 1, self._base + step + 1
            figures = batch_metrics(batch.groups, version - 1)
            with self._timed("train"):
                figures |= await self.learner.train(batch)
            figures |= await self._new_weights(step, version, batch)
            gate = self._remember(step, figures)
            metrics = figures
            if not self.stop.requested:
                await self._save_if_due(step, metrics, gate)
            self._report(batch, figures)
        if self._saved_step < step:  # a stop came during the last step
            await self._save(step, metrics, gate, final=True)
        await self.checkpoints.wait()
        return Ending(step, drained=False, gate=gate)

    async def _next_batch(self, step: int) -> Batch | None:
        """Batch `step`, whole and judged; None when a stop came first."""
        total = self._base + step
        with self._timed("wait_batch"):
            waiting = asyncio.create_task(self._work.batch(total))
            stopping = asyncio.create_task(self.stop.wait())
            try:
                await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if self.stop.requested:
                    return None
                groups = await waiting
            except Stopped:
                return None
            finally:
                waiting.cancel()
                stopping.cancel()
                await asyncio.gather(waiting, stopping, return_exceptions=True)
        samples = [s for g in groups for s in g.samples]
        failed = quarantined(samples)
        if len(failed) > QUARANTINE_RATIO * len(samples):
            await self._save_before_leaving(step - 1, frozenset(s.group_id for s in failed))
            raise SandboxUnavailable(
                f"judges failed on {len(failed)} of {len(samples)} programs of step {step}, more than "
                f"{QUARANTINE_RATIO:.0%}: see the pool's pods and their logs"
            )
        return Batch(step, groups)

    async def _new_weights(self, step: int, version: int, batch: Batch) -> dict[str, float]:
        """Weights out, evaluation where it is due, slots free. Returns the evaluation's figures."""
        with self._timed("wait_sampled"):
            await self._work.may_push(version)
        if self.stop.requested:
            self._work.close()  # nobody samples with weights that did not go out
            self._work.release(batch.groups, version)
            return {}
        with self._timed("sync"):
            await self._push(version)
        figures: dict[str, float] = {}
        if self._evaluation_due(step) and self.evaluate is not None:
            self.observer.on_phase(TrainerPhase.EVALUATING)
            with self._timed("evaluate"):
                figures = dict(await self.evaluate(step))
            self.observer.on_phase(TrainerPhase.TRAINING)
        self._work.release(batch.groups, version)
        return figures

    async def _push(self, version: int) -> None:
        await self.sampler.update_weights(await self.learner.export_weights(), version)

    def _evaluation_due(self, step: int) -> bool:
        settings = self.config.stage.evaluate
        if settings is None:
            return False
        last = step == self.config.stage.max_steps
        return last or (settings.every_steps is not None and step % settings.every_steps == 0)

    def _remember(self, step: int, figures: Mapping[str, float]) -> GateRecord | None:
        """Add the step to the metric history and evaluate the gate on it."""
        for name, value in (("step", float(step)), *figures.items()):
            if name in ("step", "reward_mean", "truncated_ratio") or name.startswith("eval/"):
                self._history.setdefault(name, []).append(value)
        gate = self.config.stage.promote_when
        return evaluate_gate(gate, self._history) if gate is not None else None

    async def _save_if_due(self, step: int, metrics: Mapping[str, float], gate: GateRecord | None) -> None:
        over = step == self.config.stage.max_steps or (gate is not None and gate.met)
        if over or step % self.config.storage.every_steps == 0:
            self.observer.on_phase(TrainerPhase.CHECKPOINTING)
            with self._timed("checkpoint"):
                await self._work.settled(self._base + step)
                await self._save(step, metrics, gate, final=over)
            self.observer.on_phase(TrainerPhase.TRAINING)

    async def _drain(self, step: int, metrics: Mapping[str, float], gate: GateRecord | None) -> Ending:
        """Let finish what is in flight while time allows, and save."""
        try:
            async with asyncio.timeout(max(0.0, self.stop.seconds_left() - SAVE_RESERVE_SECONDS)):
                await self._work.settled(self._base + step)
        except TimeoutError:
            log.warning("groups %s are cut off by the drain and will be sampled anew", self._work.waiting_for())
        if self._saved_step < step:
            await self._save(step, metrics, gate, final=False)
        await self.checkpoints.wait()
        return Ending(step, drained=True, gate=gate)

    async def _save_before_leaving(self, step: int, without: frozenset[int]) -> None:
        if self._saved_step < step:
            await self._save(step, {}, None, final=False, without=without)
        await self.checkpoints.wait()

    async def _save(
        self,
        step: int,
        metrics: Mapping[str, float],
        gate: GateRecord | None,
        *,
        final: bool,
        without: frozenset[int] = frozenset(),
    ) -> None:
        left = self._work.unfinished(without=without)
        state = PipelineState(
            step=step,
            total_steps=self._base + step,
            version=self._base + step,
            next_group_id=left.next_group_id,
            groups=left.finished,
            pending=left.pending,
            history={name: tuple(values) for name, values in self._history.items()},
            counters=self.state.counters,
        )
        await self.checkpoints.save(state, metrics=dict(metrics), final=final, gate=gate)
        self._saved_step = step

    async def _admission(self) -> None:
        """Start a rollout for each group that the buffer admits; the first failure wakes everybody."""
        try:
            async with asyncio.TaskGroup() as rollouts:
                while (admitted := await self._work.admit()) is not None:
                    rollouts.create_task(self._one_rollout(admitted), name=f"group-{admitted.group_id}")
        except BaseExceptionGroup as group:
            self._work.fail(first_cause(group))

    async def _one_rollout(self, admitted: Admitted) -> None:
        index = problem_index(self.config.recipe.seed, admitted.group_id, len(self.problems))
        group = await self.rollout.group(
            admitted, self.problems[index], on_sampled=lambda: self._work.sampled(admitted.group_id)
        )
        self._work.done(group)

    def _report(self, batch: Batch, figures: dict[str, float]) -> None:
        if is_collapsing(figures):
            log.warning(
                "step %d: %.0f %% of responses are cut off and reward is %.3f. The overlong rule does not punish "
                "truncation, so this does not mend itself: raise contextTokens or lower the learning rate",
                batch.step,
                100 * figures["truncated_ratio"],
                figures["reward_mean"],
            )
        figures["collapsing"] = float(is_collapsing(figures))
        self.observer.on_step(
            StepReport(
                batch.step,
                self._base + batch.step,
                figures,
                verdict_counts(batch.samples),
                dict(self._seconds),
                batch.groups,
            )
        )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.monotonic() - began


def first_cause(error: BaseException) -> BaseException:
    """The first error inside nested groups of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
