"""The training loop of one stage: what waits for what.

                     ┌────────────── slot free: trained, and new weights out ◄─────────────┐
                     ▼                                                                     │
   problems ──► admission ──► rollout (one task a group) ──► WorkBuffer ──► batch T ──► learner.train
                     ▲          generate ► extract ► judge        │                        │
                     │             │                              │                 weights, version T
                     │          samplers ◄────────────────────────┼────────────────────────┤
                     └─ version out, batch before it sampled      └─► checkpoint ◄── gate ──┘

- Admission waits for a slot of the buffer; then, in strict order, for the version that the batch must be sampled with,
  or, in window order, for what the next batch needs from the samplers; and then for judges that are behind.
- A rollout waits for the samplers, then for the judges. Nothing else waits for a single rollout.
- The learner waits until batch T is complete. While it trains, batch T+1 is sampled (maxOffPolicy ≥ 1).
- New weights wait, in strict order, for everything that is sampled with the old ones. In window order they go out at
  once.
- A checkpoint is copied aside between two steps and uploaded during the next. It holds the weights, and the finished
  work that the weights have not been trained on, which a resumed run trains on first. In strict order the checkpoint is
  committed when that work is judged, while training continues. In window order unfinished work is sampled again (see
  saving.py).
- Weights are pushed before the first admission, both at a start and at a resume, so samplers never answer with weights
  that the learner does not have.
- If samplers and learner share devices, each waits for its turn (see device_turns.py), and a save is copied aside
  during the learner's turn. The result of a push is probed now and then (see probe.py).

`_one_step` is the order of a step. A stop (SIGTERM, the operator, `drain`) can end it at any line except during the
training itself. There is one way out, `_leave`: admission ends, the weights are copied aside and uploaded, work in
flight may finish meanwhile, and everything is committed. So a stop loses no trained step. An interrupted evaluation
stays due: the resumed run starts with it, and a stage never ends without its final evaluation. If time runs out, the
newest committed checkpoint counts.

A failure that leaves the learner intact (in a rollout or an evaluation) takes the same way out and is raised
afterwards, so it loses no trained step either. After a failure of the training itself, of a learner rank or of the
checkpoints, the newest committed checkpoint counts. Ten steps in a row without a finite gradient are a failure too:
such a run would reach its end and look as if it had learnt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.background import first_cause
from deepcoder_trainer.checkpoint.errors import CheckpointFailed
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.errors import LearnerLost, SamplerLost
from deepcoder_trainer.pipeline.device_turns import Turns
from deepcoder_trainer.pipeline.groups import Groups
from deepcoder_trainer.pipeline.probe import Probe
from deepcoder_trainer.pipeline.saving import Saving
from deepcoder_trainer.pipeline.stage_progress import StageProgress
from deepcoder_trainer.pipeline.work_buffer import Unfinished, WorkBuffer, WorkPolicy
from deepcoder_trainer.problems.prompt import EncodedProblem
from deepcoder_trainer.protocols import Checkpoints, Ending, Evaluate, Observer, StepReport
from deepcoder_trainer.rollout.in_flight import InFlight
from deepcoder_trainer.rollout.metrics import batch_metrics, is_collapsing, quarantined, verdict_counts
from deepcoder_trainer.rollout.rollout import Rollout
from deepcoder_trainer.stopping import Moment, Stop, StopReached
from deepcoder_trainer.types import Batch, Group, Learner, Sampler

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_STEPS_WITHOUT_GRADIENT = 10
"""Number of steps in a row without a finite gradient after which the run fails."""
PUSH_SHARE = 0.8
"""Share of stallSeconds that the transfer of weights to the samplers may take at most."""


class NothingLearnt(RuntimeError):
    """The weights no longer change, because no gradient is finite."""


@dataclass
class Controller:
    """The loop of one stage. `state` is where it continues; a new stage has step 0."""

    config: StageConfig
    problems: Sequence[EncodedProblem]
    sampler: Sampler
    learner: Learner
    rollout: Rollout
    checkpoints: Checkpoints
    observer: Observer
    stop: Stop
    state: PipelineState
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the step that the loop continues from."""
    evaluate: Evaluate | None = None
    health: Callable[[], Mapping[str, float]] = dict
    """Returns figures of other parts, for each step's report."""
    on_unjudged: Callable[[Batch], None] = lambda _batch: None
    """Receives a batch that is not trained because too many verdicts are missing."""
    on_dropped: Callable[[Group], None] = lambda _group: None
    """Receives a group that is not trained because another was drawn for its slot."""
    admission_gate: Callable[[], Awaitable[None]] | None = None
    """Awaited before the buffer's next group, or wave, is admitted."""
    probe: Probe | None = None
    """Checks now and then whether samplers and learner agree."""
    _seconds: dict[str, float] = field(default_factory=dict)
    _trained: Batch | None = None
    """A batch that is trained, but not yet reported and its slots not yet freed."""
    _admitting: asyncio.Task[None] | None = None
    _half_trained: bool = False
    """Whether the weights belong to no step, because training has started and not ended, or has failed."""
    _learning: InFlight = field(default_factory=InFlight)
    _probed: dict[str, float] = field(default_factory=dict)
    """The probe's findings since the last report."""
    _failure: BaseException | None = None
    """The error that ends the loop, if there is one."""
    _steps_without_gradient: int = 0
    """Number of latest steps in a row without a finite gradient."""

    def __post_init__(self) -> None:
        state, recipe = self.state, self.config.recipe
        self._progress = StageProgress(self.config, state, self.metrics)
        last_step = self._progress.base + self.config.stage.max_steps
        policy = WorkPolicy.of(recipe, last_step, self._progress.origin)
        self._work = WorkBuffer(policy, state.total_steps, Unfinished(state.groups, state.pending, state.next_group_id))
        self._groups = Groups(
            recipe,
            self.problems,
            self.rollout,
            self._work,
            state.groups,
            gate=self.admission_gate,
            on_unjudged=self.on_unjudged,
            on_dropped=self.on_dropped,
        )
        self._saving = Saving(self.checkpoints, self._work, self._progress, self.stop)
        self._turns = Turns(self.sampler, self.learner, shared=self.config.stage.colocated)

    async def run(self) -> Ending:
        """Train until the stage is over or a stop is requested. Raises any other cause of the end."""
        closing = asyncio.create_task(self._close_when_asked())
        try:
            return await self.stop.before(Moment.SAVED, self._run())
        except StopReached:
            log.error("the time for saving is over: the newest committed checkpoint counts")
            if self._failure is not None:
                raise self._failure from None
            return Ending(self._progress.step, drained=True)
        finally:
            tasks = [task for task in (closing, self._admitting) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._end_probe()
            await self._saving.close()

    async def _run(self) -> Ending:
        try:
            await self._unless_stopped(self._push())
            await self._begin_probe()
            await self._evaluate_if_owed()
            if not self._progress.over:
                self._admitting = asyncio.create_task(self._groups.admission())
            while not self._progress.over:
                await self._one_step(self._progress.step + 1)
        except StopReached:
            pass
        except Exception as error:
            cause = first_cause(error)
            if self._half_trained or isinstance(cause, LearnerLost | CheckpointFailed):
                raise
            await self._leave_for(cause)
            raise cause from None
        return await self._leave()

    async def _leave_for(self, failure: BaseException) -> None:
        """Leave within a stop's time. `failure` remains the cause of the end, whatever happens meanwhile."""
        self._failure = failure
        log.error("saving and exiting, because training cannot continue: %s", failure)
        self.stop.request(self.config.storage.drain_seconds, str(failure))
        try:
            await self._leave()
        except Exception as error:
            log.error("unsaved work is lost, the newest committed checkpoint counts: %s", error)

    async def _one_step(self, step: int) -> None:
        """Run one step. The module's docstring says what a stop does to it."""
        with self._timed("wait_batch"):
            batch = await self._unless_stopped(self._groups.batch(step, self._progress.base + step))
        self.stop.check()
        await self._end_probe()
        if self._turns.shared:
            with self._timed("turn"):
                await self._unless_stopped(self._turns.learn())
        await self._score_probe()
        with self._timed("train"):
            await self._train(batch)  # never cut off: half a step is no step
        if self._turns.shared and self._progress.save_due:
            await self._copy()
        with self._timed("wait_sampled"):
            await self._unless_stopped(self._work.may_push(self._progress.version))
        with self._timed("sync"):
            await self._unless_stopped(self._push())
        await self._begin_probe()
        await self._evaluate_if_owed()
        self._end_step()
        await self._save_if_due()

    async def _leave(self) -> Ending:
        """The one way out of the loop."""
        self._work.close()
        self._end_step()  # no sampling follows, so slots may be freed whether or not the weights were pushed
        await self._end_probe()
        await self._turns.learn()  # whatever a stop has left half-way
        if self._saving.owed and not self.stop.requested:
            self.observer.on_phase(TrainerPhase.CHECKPOINTING)
        return await self._saving.leave()

    async def _train(self, batch: Batch) -> None:
        metrics = batch_metrics(batch.groups, self._progress.version)
        self._half_trained = True
        with self._learning.one():
            metrics |= await self.learner.train(batch)
        metrics["collapsing"] = float(is_collapsing(metrics))
        counted = {
            "samples": len(batch.samples),
            "quarantined": len(quarantined(batch.samples)),
            "tokens": metrics["tokens_sampled"],
            "groups_dropped": metrics["groups_dropped"],
        }
        self._trained = batch
        self._progress.trained(batch.step, metrics, counted)
        self._half_trained = False
        self._check_gradients(metrics.get("skipped_optimizer_steps", 0.0))

    def _check_gradients(self, skipped: float) -> None:
        none_finite = skipped >= self.config.recipe.optimizer_steps
        steps = self._steps_without_gradient = self._steps_without_gradient + 1 if none_finite else 0
        if steps >= MAX_STEPS_WITHOUT_GRADIENT:
            raise NothingLearnt(
                f"no gradient of the last {steps} steps was finite, so the weights are those of step "
                f"{self._progress.step - steps}: look at loss, grad_norm and sync_logprob_gap_max of the steps "
                "before it, and start a new run from a checkpoint of that step or earlier (spec.from; by hand: parent) "
                "with a lower recipe.learningRate"
            )

    async def _push(self) -> None:
        """Push the weights to all samplers, within a bound. The sampler group replaces one that fails or hangs."""
        seconds = PUSH_SHARE * self.config.stage.stall_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._turns.push(self._progress.version)
        except TimeoutError:
            raise SamplerLost(
                f"weights of version {self._progress.version} have reached no sampler within {seconds:.0f} s "
                f"({PUSH_SHARE:.0%} of stallSeconds): see the samplers' logs"
            ) from None

    async def _begin_probe(self) -> None:
        if self.probe is not None and self.probe.due(self._progress.step):
            with self._timed("probe"):
                await self._unless_stopped(self.probe.begin(self._progress.step, self._progress.version))

    async def _end_probe(self) -> None:
        if self.probe is not None:
            await self.probe.end()

    async def _score_probe(self) -> None:
        if self.probe is not None and self.probe.open:
            with self._timed("probe"):
                self._probed |= await self.probe.figures(self.learner)

    async def _copy(self) -> None:
        """Copy what is to be saved aside, and let its upload begin."""
        self.observer.on_phase(TrainerPhase.CHECKPOINTING)  # in which a slow upload before this one is no stall
        await self._unless_stopped(self._saving.kept())
        await self._saving.copy()
        self.observer.on_phase(TrainerPhase.TRAINING)

    async def _evaluate_if_owed(self) -> None:
        """Evaluate the pushed weights if an evaluation is due. A save that is due uploads meanwhile."""
        if not self._progress.evaluation_owed:
            return
        assert self.evaluate is not None, "the stage evaluates"
        if self._progress.save_due and self._trained is not None:
            await self._copy()
        self.observer.on_phase(TrainerPhase.EVALUATING)
        with self._timed("evaluate"), self.rollout.sampling.one():  # which keeps the samplers busy
            figures = await self._unless_stopped(self.evaluate(self._progress.step))
        self.observer.on_phase(TrainerPhase.TRAINING)
        self._progress.evaluated(figures)
        if self._trained is None:
            self._report(())

    def _end_step(self) -> None:
        """Free the step's slots and report it, before it is saved, so that no crash loses the report."""
        batch, self._trained = self._trained, None
        if batch is None:
            return
        self._work.release(batch.groups, self._progress.version)
        if self._progress.metrics["collapsing"]:
            log.warning(
                "step %d: %.0f %% of responses are cut off and reward is %.3f. The overlong rule does not punish "
                "truncation, so this does not recover by itself: raise contextTokens or lower the learning rate",
                batch.step,
                100 * self._progress.metrics["truncated_ratio"],
                self._progress.metrics["reward_mean"],
            )
        self._report(batch.groups)

    async def _save_if_due(self) -> None:
        """Save if due, or if weights were copied for the stage's end, which the final evaluation then undid."""
        if self._progress.over or not (self._progress.save_due or self._saving.copied):
            return
        self.observer.on_phase(TrainerPhase.CHECKPOINTING)
        with self._timed("checkpoint"):
            await self._unless_stopped(self._saving.kept())
            await self._saving.save()
        self.observer.on_phase(TrainerPhase.TRAINING)

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        return await self.stop.before(Moment.ASKED, work)

    async def _close_when_asked(self) -> None:
        await self.stop.reached(Moment.ASKED)
        self.observer.on_phase(TrainerPhase.DRAINING)
        self._work.close()

    def _report(self, groups: tuple[Group, ...]) -> None:
        """Report the step to the observers, without its groups if these were reported before."""
        seconds, self._seconds = self._seconds, {}
        probed, self._probed = self._probed, {}
        self.observer.on_step(
            StepReport(
                self._progress.step,
                self._progress.version,
                {**self._progress.metrics, **self._progress.totals, **self.health()},
                verdict_counts([sample for group in groups for sample in group.samples]),
                seconds,
                groups,
                self._gauges() | probed,
                self._groups.take_dropped(),
            )
        )

    def _gauges(self) -> dict[str, float]:
        """Return figures of the loop's parts since the previous step, and their current state."""
        return {
            "policy_version": float(self._work.version),
            "samples_inflight": float(self.rollout.sampling.count),
            "sandbox_inflight": float(self.rollout.judging.count),
            "idle_ratio{role=learner}": self._learning.idle_ratio(),
            "idle_ratio{role=sampler}": self.rollout.sampling.idle_ratio(),
            **{f"groups_active{{state={state}}}": float(count) for state, count in self._work.active().items()},
        }

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + clock() - began
