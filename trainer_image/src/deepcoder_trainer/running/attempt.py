"""One attempt of one stage, from a valid config to its exit record.

The attempt first claims its storage. Then samplers and learners start in parallel, because both spend seconds on
imports. Then the attempt continues from the newest complete checkpoint, from its parent, or from the model. A stop ends
any of these phases.

The end always has the same order and one time limit: that of the stop, or as much time without a stop, plus a little
for closing. The loop saves (see controller.py); exit.json is written, because the operator decides by it; metrics and
samples follow; then everything is closed in reverse order of its start. What cannot be closed in time ends with the
process.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deepcoder_contracts.exit import ExitCode, ExitRecord
from deepcoder_contracts.layout import EXIT
from deepcoder_contracts.learner_memory import element_bytes
from deepcoder_contracts.manifest import ComputeThreads
from deepcoder_contracts.model_shape import parameters
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import StageConfig, StageResources, StageType
from deepcoder_trainer.background import Background, abandonable, first_cause
from deepcoder_trainer.checkpoint.committed import CommittedCheckpoint
from deepcoder_trainer.checkpoint.inputs import Inputs, reward_digest
from deepcoder_trainer.checkpoint.opening import open_run_storage
from deepcoder_trainer.checkpoint.reader import ResumePoint, find_resume_point
from deepcoder_trainer.checkpoint.sources import Sources, pinned
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.checkpoint.writer import CheckpointWriter
from deepcoder_trainer.cluster import connect_ray
from deepcoder_trainer.evaluation.context import EvaluationContext, no_judge
from deepcoder_trainer.judge.backend import Judge
from deepcoder_trainer.judge.connect import connect_judge
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.modelconfig import model_files, read_model_config
from deepcoder_trainer.pipeline.controller import Controller
from deepcoder_trainer.pipeline.probe import Probe
from deepcoder_trainer.plan.check import check
from deepcoder_trainer.problems.prompt import EncodedProblems
from deepcoder_trainer.protocols import Ending, Evaluate, Observer
from deepcoder_trainer.rollout.answers import AnswerVerifier
from deepcoder_trainer.rollout.reward import JudgeReward, Reward, load_reward
from deepcoder_trainer.rollout.rollout import Rollout, Sampling
from deepcoder_trainer.running import exit_records
from deepcoder_trainer.running.driverlog import without_secrets
from deepcoder_trainer.running.export_check import Comparison
from deepcoder_trainer.running.judgeable import refuse_too_large, refuse_unjudgeable
from deepcoder_trainer.running.last_steps import LastSteps
from deepcoder_trainer.running.sinks import Sinks
from deepcoder_trainer.running.startup import bring_to, load_problems, start_both
from deepcoder_trainer.runtime_info import RuntimeInfo, find_accelerator
from deepcoder_trainer.sampler.group import SamplerGroup
from deepcoder_trainer.sampler.start import start_samplers
from deepcoder_trainer.shapes import model_shape
from deepcoder_trainer.stopping import LEAVE_SECONDS, Moment, Stop, StopReached, stop_on_signals
from deepcoder_trainer.telemetry.trackers import start_trackers
from deepcoder_trainer.tokenizer import load_tokenizer
from deepcoder_trainer.types import Learner
from deepcoder_trainer.workdir import Workdir

if TYPE_CHECKING:
    from deepcoder_trainer.curation.stage import CuratedSet

log = logging.getLogger(__name__)
T = TypeVar("T")


class Attempt:
    """Runs one attempt, and holds its parts meanwhile."""

    def __init__(
        self,
        config: StageConfig,
        stop: Stop,
        judge: LocalJudge | None,
        observers: tuple[Observer, ...] = (),
        machine: StageResources | None = None,
        later: Sequence[StageConfig] = (),
    ) -> None:
        """`machine` is the size of a Ray cluster of our own, if later stages need more than this one. `later` stages
        are checked when this one begins: against the model, and, while this one trains, their problem sets."""
        self.config = config
        self.stop = stop
        self._judge = judge
        self._machine = machine or config.stage.resources
        self._later = later
        self._folder = Workdir()
        self._workdir = self._folder.path
        self._store = open_run_storage(config.storage)
        self._sources = Sources(endpoint=config.storage.endpoint, region=config.storage.region)
        self._writer = CheckpointWriter(config, None, workdir=self._workdir, store=self._store)
        self._runtime_info = RuntimeInfo()
        self._sinks = Sinks(config, stop, self._store, self._workdir, self._runtime_info, observers)
        self._sinks.watch(self._totals)
        self._client: Judge | None = None
        self._sampler: SamplerGroup | None = None
        self._background = Background()
        self._last_steps = LastSteps(stop)
        self._failure: BaseException | None = None
        """The failure of background work that ends the attempt."""

    async def run(self) -> ExitRecord:
        """Run the attempt. Raises nothing, except if it is cancelled."""
        stack = AsyncExitStack()
        stack.push_async_callback(self._background.close)
        try:
            try:
                record = await self._background.beside(self._run(stack), self._stop_for)
            except Exception as error:
                record = exit_records.failed(first_cause(error), self._sinks.progress.report().step)
            if self._failure is not None and record.code != ExitCode.DONE:
                record = exit_records.failed(first_cause(self._failure), record.step)
            self._last_steps.at_least(self.config.storage.drain_seconds + LEAVE_SECONDS)
            record = await self._tell(record)
        finally:
            # Leave time for closing in any case: the next stage of a local run needs the resources of these actors.
            self._last_steps.at_least(LEAVE_SECONDS)
            await self._last_steps.do("closing", stack.aclose())
            self._folder.remove()
        return record

    def _stop_for(self, error: BaseException) -> None:
        """Handle the failure of background work that training needs: request a stop, which saves trained steps."""
        if self.stop.requested:
            log.error("background work failed while the attempt was ending: %s", error)
            return
        self._failure = error
        log.error("saving and exiting, because background work failed: %s", error)
        self.stop.request(self.config.storage.drain_seconds, str(error))

    async def _tell(self, record: ExitRecord) -> ExitRecord:
        """Write exit.json, then everything that is not stored yet."""
        newest = self._sinks.progress.checkpoint
        digest = newest.digest if newest else None
        about = {"manifest_digest": digest, "pod_uid": os.environ.get("POD_UID")}
        record = record.model_copy(update={"message": without_secrets(self.config, record.message), **about})
        await self._last_steps.do(EXIT, self._writer.write_exit(record))
        await self._last_steps.do("metrics and samples", self._sinks.keep())
        self._sinks.give_up()
        return record

    async def _run(self, stack: AsyncExitStack) -> ExitRecord:
        config = self.config
        if config.progress is not None:
            self._background.loop(self._sinks.progress.run(config.progress))
        self._sinks.prometheus.serve()
        stack.push_async_callback(asyncio.to_thread, self._sinks.prometheus.close)
        reward, model_dir, tokenizer = await self._unless_stopped(self._prepare(stack))
        if config.stage.type is StageType.EVALUATE:
            return await self._evaluate(stack, reward, model_dir, tokenizer)
        return await self._train(stack, reward, model_dir, tokenizer)

    async def _prepare(self, stack: AsyncExitStack) -> tuple[Reward, Path, Any]:
        """Prepare what samplers and learners need: storage, reward, model, tokenizer, and the Ray cluster."""
        config = self.config
        self._sinks.also(await start_trackers(config))
        await self._writer.claim()
        reward = await self._reward(stack)
        model_dir = await abandonable(self._sources.model, config.model)
        model_config = read_model_config(model_dir)
        for each in (config, *self._later):
            check(each, model_config)
        tokenizer = await abandonable(load_tokenizer, model_dir)
        # Not `abandonable`, whose thread ends: the processes of our own cluster end with the thread that started them.
        weights = element_bytes(config.recipe) * parameters(model_shape(model_config))
        await asyncio.to_thread(connect_ray, self._machine, weights)
        stop_on_signals(self.stop, config.storage.drain_seconds)
        return reward, model_dir, tokenizer

    async def _train(self, stack: AsyncExitStack, reward: Reward, model_dir: Path, tokenizer: Any) -> ExitRecord:
        config = self.config
        curated = await self._unless_stopped(self._curated(stack, model_dir, tokenizer))
        problems, digest = await self._unless_stopped(
            abandonable(load_problems, config, self._sources, tokenizer, self._client, curated)
        )
        asks_judges = self._client is not None
        if self._client is not None and config.recipe.reward is None:  # a custom function judges what it wants to
            self._background.loop(refuse_too_large(self._client, [encoded.problem for encoded in problems.kept]))
        self._sinks.progress.trains_on([encoded.problem for encoded in problems.kept], asks_judges=asks_judges)
        config = config.model_copy(
            update={"model": pinned(config.model, model_dir)}
        )  # after curation, whose request contains the model as it is named in the config
        sampler, learner = await self._unless_stopped(start_both(config, model_dir, stack))
        self._sampler = sampler
        await self._unless_stopped(self._look_around())
        threads = None
        if config.recipe.deterministic:
            threads = ComputeThreads(learners=list(learner.threads), samplers=list(sampler.threads))
        rewarded_by = await abandonable(reward_digest, config.recipe.reward)
        inputs = Inputs(digest, await abandonable(model_files, model_dir), rewarded_by, problems.digest)
        point = await self._unless_stopped(
            find_resume_point(config, learner, workdir=self._workdir, store=self._store, threads=threads, inputs=inputs)
        )
        writer = self._writer = CheckpointWriter(
            config,
            learner,
            workdir=self._workdir,
            parent=point.ref if point else None,
            inputs=inputs,
            store=self._store,
            runtime_info=self._runtime_info,
            threads=threads,
        )
        stack.push_async_callback(writer.close)
        writer.on_commit = self._sinks.committed
        writer.before_commit = self._sinks.keep_in_time
        writer.compare = Comparison(config, self.stop, learner).compare
        state = await self._unless_stopped(bring_to(point, learner, config))
        if point is not None and point.own:
            writer.latest = CommittedCheckpoint(point.ref, point.manifest)
            self._sinks.committed(writer.latest)
        if point is not None and point.own and point.manifest.final:
            log.info("stage %s had ended at step %d: exporting it", config.stage.name, state.step)
            ending = Ending(state.step, drained=False, gate=point.manifest.gate)
        else:
            ending = await self._loop(sampler, learner, writer, reward, tokenizer, problems, state, point)
        if ending.drained:
            return exit_records.drained(self.stop.reason, ending.step)
        try:
            export = await self.stop.before(Moment.SAVED, writer.export(self._last_metrics()))
        except StopReached:
            log.warning("the stage is over and saved; the next attempt exports it")
            return exit_records.drained(self.stop.reason, ending.step)
        log.info("stage %s is done: %s", config.stage.name, export.ref.uri)
        return exit_records.completed(ending.step, ending.gate)

    async def _curated(self, stack: AsyncExitStack, model_dir: Path, tokenizer: Any) -> CuratedSet | None:
        """Return the run's own curated set, made now if no earlier attempt has. None for a run with a finished set."""
        config = self.config
        if config.dataset is None or config.dataset.curation is None:
            return None
        from deepcoder_trainer.curation.progress import Figures
        from deepcoder_trainer.curation.stage import RunCuration, curated_set

        observer = self._sinks.observer()
        observer.on_phase(TrainerPhase.CURATING)

        def told(phase: str, done: int, total: int) -> None:
            self._sinks.progress.curating(phase, done, total)
            self._sinks.prometheus.curating(phase, done, total)

        judge = self._client
        if judge is None:  # a custom reward function that uses no judge
            judge = await stack.enter_async_context(connect_judge(config, self._judge))
            self._background.loop(judge.run())
        asked = RunCuration(
            config, self._store, self._sources, self._workdir, model_dir, tokenizer, judge, Figures(told)
        )
        curated = await curated_set(asked)
        observer.on_phase(TrainerPhase.STARTING)
        return curated

    async def _loop(
        self,
        sampler: SamplerGroup,
        learner: Learner,
        writer: CheckpointWriter,
        reward: Reward,
        tokenizer: Any,
        problems: EncodedProblems,
        state: PipelineState,
        point: ResumePoint | None,
    ) -> Ending:
        """Train from `state` until the stage is over or a stop is requested."""
        config, recipe = self.config, self.config.recipe
        prompts = {p.problem.id: p.problem.prompt for p in problems.kept}
        samples = self._sinks.keep_samples(prompts)
        self._background.loop(samples.run())
        observer = self._sinks.observer(samples)
        evaluate: Evaluate | None = None
        if any(each.stage.evaluate for each in (config, *self._later)):
            from deepcoder_trainer.running.evaluations import Evaluations

            evaluations = Evaluations(self._context(sampler, reward, tokenizer), self._later)
            evaluate = evaluations.evaluate if config.stage.evaluate else None
            if point is None or not point.own:
                self._background.loop(evaluations.look_ahead())
        sampling = Sampling(recipe.seed, recipe.group_size, config.stage.context_tokens, recipe.temperature)
        rollout, client = Rollout(sampler, reward, sampling), self._client
        self._sinks.progress.resumed_at(state.step)
        observer.on_phase(TrainerPhase.TRAINING)
        controller = Controller(
            config=config,
            problems=problems.kept,
            sampler=sampler,
            learner=learner,
            rollout=rollout,
            checkpoints=writer,
            observer=observer,
            stop=self.stop,
            state=state,
            metrics=point.manifest.metrics if point is not None and point.own else {},
            evaluate=evaluate,
            health=lambda: self._health(sampler, writer),
            on_unjudged=samples.keep,
            on_dropped=samples.dropped,
            probe=Probe(recipe, problems.kept, sampler, config.stage.context_tokens),
            admission_gate=(lambda: rollout.room(lambda: client.capacity)) if client is not None else None,
        )
        try:
            return await controller.run()
        except Exception:
            await self._let_commit(writer)
            raise

    def _health(self, sampler: SamplerGroup, writer: CheckpointWriter) -> dict[str, float]:
        """Return metrics of samplers and judge since the attempt's start, and of the newest checkpoint."""
        figures = {"sampler_restarts": float(sampler.restarts)}
        if self._client is not None:
            figures |= {"judge_errors": float(self._client.errors), "judge_capacity": float(self._client.capacity)}
        if (times := writer.times) is not None:
            figures |= {"checkpoint_stall_seconds": times.stall, "checkpoint_upload_seconds": times.upload}
        return figures

    def _totals(self) -> dict[str, float]:
        """Return counters since the attempt's start, for the metrics endpoint."""
        totals: dict[str, float] = {}
        if self._client is not None:
            retries = self._client.retries.items()
            totals |= {f"sandbox_retries{{reason={reason}}}": float(count) for reason, count in retries}
        if self._sampler is not None:
            totals["weight_sync_failures"] = float(self._sampler.failed_updates)
        return totals

    async def _evaluate(self, stack: AsyncExitStack, reward: Reward, model_dir: Path, tokenizer: Any) -> ExitRecord:
        from deepcoder_trainer.evaluation.run import run_evaluate_stage

        if (judge := self._client) is not None:
            await self._unless_stopped(abandonable(refuse_unjudgeable, self.config, judge, (), self._sources))
        sampler = self._sampler = await self._unless_stopped(start_samplers(self.config, model_dir))
        stack.push_async_callback(sampler.close)
        await self._unless_stopped(self._look_around())
        observer = self._sinks.observer()
        observer.on_phase(TrainerPhase.EVALUATING)
        await self._unless_stopped(run_evaluate_stage(self._context(sampler, reward, tokenizer)))
        return exit_records.completed()

    async def _look_around(self) -> None:
        """Record the GPUs, once samplers and learners are placed."""
        if self.config.stage.resources.accelerators:
            self._runtime_info.accelerator = await find_accelerator()

    def _context(self, sampler: Any, reward: Reward, tokenizer: Any) -> EvaluationContext:
        judge, own_reward = self._client, self.config.recipe.reward is not None
        return EvaluationContext(
            config=self.config,
            sampler=sampler,
            reward=reward,
            store=self._store,
            sources=self._sources,
            tokenizer=tokenizer,
            workdir=self._workdir,
            dtype=self.config.recipe.precision.dtype,
            runtime_info=self._runtime_info,
            told=self._sinks.evaluated,
            judge_version=no_judge if judge is None else judge.version,
            max_memory_mb=no_judge if judge is None or own_reward else judge.max_memory_mb,
        )

    async def _reward(self, stack: AsyncExitStack) -> Reward:
        own = None if self.config.recipe.reward is None else load_reward(self.config.recipe.reward)
        if own is not None and not own.wants_programs:
            return own
        self._client = await stack.enter_async_context(connect_judge(self.config, self._judge))
        self._background.loop(self._client.run())
        if own is not None:
            return own.with_judge(self._client)
        answers = AnswerVerifier()
        stack.push_async_callback(answers.close)
        return JudgeReward(self._client, answers)

    async def _let_commit(self, writer: CheckpointWriter) -> None:
        """Let a checkpoint that is being uploaded be committed, although the attempt fails."""
        try:
            async with asyncio.timeout(self.config.storage.drain_seconds):
                await self.stop.before(Moment.SAVED, writer.wait())
        except Exception as error:  # the attempt already fails for another reason
            log.error("the last checkpoint was not committed: %s", error)

    def _last_metrics(self) -> Mapping[str, float]:
        latest = self._writer.latest
        return latest.manifest.metrics if latest else {}

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        return await self.stop.before(Moment.ASKED, work)
