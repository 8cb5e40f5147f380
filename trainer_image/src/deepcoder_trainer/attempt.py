"""One attempt of one stage, from a valid config to its exit record.

Storage is claimed first; then samplers and learners start side by side, since both import for seconds; then the
attempt goes on from the newest whole checkpoint, its parent, or the model. The order in which things are closed is
the reverse, by one exit stack, whatever happened. Every end is told in exit.json where storage can still be reached.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from deepcoder_contracts.exit import ExitCode, ExitRecord
from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.layout import metrics_key
from deepcoder_contracts.progress import CheckpointSummary, TrainerPhase
from deepcoder_contracts.stage import OptimizerState, StageConfig, StageType
from deepcoder_trainer.background import Background
from deepcoder_trainer.checkpoint.errors import StorageError
from deepcoder_trainer.checkpoint.reader import ResumePoint, find_resume_point
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.checkpoint.storage import open_run_storage
from deepcoder_trainer.checkpoint.writer import CheckpointWriter, CommittedCheckpoint
from deepcoder_trainer.cluster import connect_ray
from deepcoder_trainer.controller import Controller, first_cause
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation_context import EvaluationContext
from deepcoder_trainer.judge.connect import connect_judge
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.ports import Ending, Observer, SandboxUnavailable
from deepcoder_trainer.problems.dataset import DatasetError, load_dataset
from deepcoder_trainer.problems.prompt import EncodedProblems, encode_problems
from deepcoder_trainer.rollout.reward import JudgeReward, Reward, load_reward
from deepcoder_trainer.rollout.rollout import Rollout, Sampling
from deepcoder_trainer.sampler.start import start_samplers
from deepcoder_trainer.stopping import Stop, stop_on_signals
from deepcoder_trainer.telemetry.metrics import JsonLines, Prometheus
from deepcoder_trainer.telemetry.observers import Observers
from deepcoder_trainer.telemetry.progress import Progress
from deepcoder_trainer.telemetry.samples import SampleSink
from deepcoder_trainer.telemetry.trackers import trackers
from deepcoder_trainer.types import Learner

log = logging.getLogger(__name__)
T = TypeVar("T")

CRASHED = 1


class StoppedEarly(Exception):
    """A stop came before training had begun: there is nothing to save."""


class Attempt:
    """What one attempt holds while it runs."""

    def __init__(
        self, config: StageConfig, stop: Stop, judge: LocalJudge | None, observers: tuple[Observer, ...] = ()
    ) -> None:
        self.config = config
        self.stop = stop
        self._judge = judge
        self._extra = observers
        self._workdir = Path(tempfile.mkdtemp(prefix="deepcoder-trainer-"))
        self._store = open_run_storage(config.storage)
        self._sources = Sources(endpoint=config.storage.endpoint, region=config.storage.region)
        self._writer = CheckpointWriter(config, None, workdir=self._workdir, store=self._store)
        self._progress = Progress(config, stop)
        self._prometheus = Prometheus(config.stage.index)
        self._metrics = JsonLines(self._workdir / "metrics.jsonl", config.stage.name)
        self._background = Background()

    async def run(self) -> ExitRecord:
        """Run it; never raises but when cancelled."""
        try:
            record = await self._run_beside_background()
        except Exception as error:
            record = exit_record(first_cause(error), self._progress.report().step)
        newest = self._progress.checkpoint
        digest = newest.digest if newest else None
        record = record.model_copy(update={"manifest_digest": digest, "pod_uid": os.environ.get("POD_UID")})
        try:
            await self._keep_metrics()
            await self._writer.write_exit(record)
        except StorageError as error:
            log.error("exit.json could not be written: %s", error)
        shutil.rmtree(self._workdir, ignore_errors=True)
        return record

    async def _run_beside_background(self) -> ExitRecord:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._background.close)
            return await self._background.beside(self._run(stack))

    async def _run(self, stack: AsyncExitStack) -> ExitRecord:
        config = self.config
        if config.progress is not None:
            self._background.loop(self._progress.run(config.progress))
        self._prometheus.serve()
        self._extra += tuple(await asyncio.to_thread(trackers, config))
        await self._writer.claim()
        reward = await self._reward(stack)
        model_dir = await asyncio.to_thread(self._sources.model, config.model)
        tokenizer = await asyncio.to_thread(load_tokenizer, model_dir)
        await asyncio.to_thread(connect_ray, config.stage.resources)
        stop_on_signals(self.stop, config.storage.drain_seconds)
        if config.stage.type is StageType.EVALUATE:
            return await self._evaluate(stack, reward, model_dir, tokenizer)
        return await self._train(stack, reward, model_dir, tokenizer)

    async def _train(self, stack: AsyncExitStack, reward: Reward, model_dir: Path, tokenizer: Any) -> ExitRecord:
        from deepcoder_trainer.learner.group import start_learners

        config, recipe = self.config, self.config.recipe
        problems, digest = await asyncio.to_thread(self._problems, tokenizer)
        sampler, learner = await self._unless_stopped(
            _both(start_samplers(config, model_dir), start_learners(config, model_dir))
        )
        stack.push_async_callback(sampler.close)
        stack.push_async_callback(learner.close)
        point = await self._unless_stopped(find_resume_point(config, learner, workdir=self._workdir, store=self._store))
        writer = self._writer = CheckpointWriter(
            config,
            learner,
            workdir=self._workdir,
            parent=point.ref if point else None,
            dataset_digest=digest,
            store=self._store,
        )
        writer.on_commit = self._committed
        state = await self._load(point, learner)
        if point is not None and point.own:
            writer.latest = CommittedCheckpoint(point.ref, point.manifest)
            self._committed(writer.latest)
        if point is not None and point.own and point.manifest.final:
            log.info("stage %s had ended at step %d: exporting it", config.stage.name, state.step)
            ending = Ending(state.step, drained=False, gate=point.manifest.gate)
        else:
            sampling = Sampling(recipe.seed, recipe.group_size, config.stage.context_tokens, recipe.temperature)
            samples = SampleSink(
                self._store, config.stage.name, {p.problem.id: p.problem.prompt for p in problems.kept}
            )
            self._background.loop(samples.run())
            observer = self._observer(samples)
            context = self._context(sampler, reward, tokenizer, observer)
            self._progress.resumed_at(state.step)
            observer.on_phase(TrainerPhase.TRAINING)
            controller = Controller(
                config=config,
                problems=problems.kept,
                sampler=sampler,
                learner=learner,
                rollout=Rollout(sampler, reward, sampling),
                checkpoints=writer,
                observer=observer,
                stop=self.stop,
                state=state,
                evaluate=_evaluator(context) if config.stage.evaluate else None,
            )
            try:
                ending = await controller.run()
            except Exception:
                await self._let_commit(writer)
                raise
            finally:
                await samples.close()
        if ending.drained:
            return ExitRecord(code=ExitCode.DRAINED, reason="Drained", message=self.stop.reason, step=ending.step)
        export = await writer.export(self._last_metrics())
        log.info("stage %s is done: %s", config.stage.name, export.ref.uri)
        return ExitRecord(code=ExitCode.DONE, reason="Completed", message=_gate_text(ending.gate), step=ending.step)

    async def _evaluate(self, stack: AsyncExitStack, reward: Reward, model_dir: Path, tokenizer: Any) -> ExitRecord:
        from deepcoder_trainer.evaluation.run import run_evaluate_stage

        sampler = await self._unless_stopped(start_samplers(self.config, model_dir))
        stack.push_async_callback(sampler.close)
        observer = self._observer()
        observer.on_phase(TrainerPhase.EVALUATING)
        await self._unless_stopped(run_evaluate_stage(self._context(sampler, reward, tokenizer, observer)))
        return ExitRecord(code=ExitCode.DONE, reason="Completed")

    def _context(self, sampler: Any, reward: Reward, tokenizer: Any, observer: Observer) -> EvaluationContext:
        return EvaluationContext(
            config=self.config,
            sampler=sampler,
            reward=reward,
            store=self._store,
            sources=self._sources,
            tokenizer=tokenizer,
            workdir=self._workdir,
            dtype="float32" if self.config.recipe.precision == "Float32" else "bfloat16",
            stop=self.stop,
            observer=observer,
        )

    def _observer(self, *more: Observer) -> Observers:
        return Observers([self._progress, self._metrics, self._prometheus, *more, *self._extra])

    async def _reward(self, stack: AsyncExitStack) -> Reward:
        if self.config.recipe.reward is not None:
            return load_reward(self.config.recipe.reward)
        client, background = await stack.enter_async_context(connect_judge(self.config, self._judge))
        self._background.loop(background)
        return JudgeReward(client)

    def _problems(self, tokenizer: Any) -> tuple[EncodedProblems, str]:
        source = self.config.dataset
        assert source is not None, "the contract sees to it"
        dataset = load_dataset(self._sources.dataset(source.uri), source.sha256)
        try:
            problems = encode_problems(dataset.problems, tokenizer, self.config.recipe.max_prompt_tokens)
        except ValueError as error:
            raise BadConfig(str(error), field="recipe.maxPromptTokens") from error
        if problems.too_long:
            log.warning(
                "%d of %d problems are left out: their prompts have more than recipe.maxPromptTokens %d tokens",
                len(problems.too_long),
                len(dataset.problems),
                self.config.recipe.max_prompt_tokens,
            )
        return problems, dataset.digest

    async def _load(self, point: ResumePoint | None, learner: Learner) -> PipelineState:
        """Bring the learner to where the attempt goes on from; the controller's state there."""
        groups = self.config.recipe.prompts_per_step
        if point is None:
            return PipelineState(step=0, total_steps=0, version=0, next_group_id=0)
        carry = self.config.stage.optimizer is OptimizerState.CARRY
        await learner.load(point.directory, optimizer=point.own or carry)
        if point.own:
            return point.state
        total = point.state.total_steps
        return PipelineState(step=0, total_steps=total, version=total, next_group_id=total * groups)

    def _committed(self, committed: CommittedCheckpoint) -> None:
        manifest = committed.manifest
        self._progress.checkpoint = CheckpointSummary(
            uri=committed.ref.uri, digest=committed.ref.digest, step=manifest.step
        )
        self._background.once(self._keep_metrics())

    async def _let_commit(self, writer: CheckpointWriter) -> None:
        """The attempt fails, but a checkpoint may be on its way: it is worth a moment."""
        try:
            async with asyncio.timeout(self.config.storage.drain_seconds):
                await writer.wait()
        except Exception as error:  # whatever it is, the attempt fails of something else
            log.error("the last checkpoint was not committed: %s", error)

    async def _keep_metrics(self) -> None:
        if self._metrics.path.exists():
            key = metrics_key(self.config.stage.name, self.config.ordinal)
            try:
                await asyncio.to_thread(self._store.put_file, key, self._metrics.path)
            except StorageError as error:
                log.error("metrics.jsonl could not be stored, the next checkpoint tries again: %s", error)

    def _last_metrics(self) -> Mapping[str, float]:
        latest = self._writer.latest
        return latest.manifest.metrics if latest else {}

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result; raises StoppedEarly when a stop comes first."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.create_task(self.stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise StoppedEarly(self.stop.reason)
            return task.result()
        finally:
            stopping.cancel()
            task.cancel()
            await asyncio.gather(task, stopping, return_exceptions=True)


def load_tokenizer(model_dir: Path) -> Any:
    """The model's tokenizer; raises BadConfig when there is none.

    From tokenizer.json where there is one: the class that AutoTokenizer looks up imports torch, five seconds of CPU
    time, to do the same.
    """
    try:
        if (model_dir / "tokenizer.json").is_file():
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(model_dir)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(model_dir)
    except (OSError, ValueError) as error:
        raise BadConfig(f"model.uri {model_dir} has no usable tokenizer: {error}", field="model.uri") from error


def exit_record(error: BaseException, step: int) -> ExitRecord:
    """What an error means for the attempt's end."""
    message = str(error)[:4000] or type(error).__name__
    if isinstance(error, BadConfig):
        return ExitRecord(code=ExitCode.BAD_CONFIG, reason="BadConfig", message=message, field=error.field, step=step)
    if isinstance(error, DatasetError):
        return ExitRecord(code=ExitCode.BAD_CONFIG, reason="BadConfig", message=message, field="dataset", step=step)
    if isinstance(error, SandboxUnavailable):
        return ExitRecord(code=ExitCode.DRAINED, reason="SandboxUnavailable", message=message, step=step)
    if isinstance(error, StoppedEarly):
        return ExitRecord(code=ExitCode.DRAINED, reason="Drained", message=message, step=step)
    log.error("the attempt crashed", exc_info=error)
    if isinstance(error, MemoryError) or "out of memory" in message.lower():
        return ExitRecord(code=CRASHED, reason="OutOfMemory", message=message, step=step)
    name = type(error).__name__
    reason = name if re.fullmatch(r"[A-Z][A-Za-z0-9]{0,62}", name) else "Crashed"
    return ExitRecord(code=CRASHED, reason=reason, message=message, step=step)


async def _both(first: Coroutine[Any, Any, Any], second: Coroutine[Any, Any, Any]) -> tuple[Any, Any]:
    """Both at once; if one fails the other is ended before the error is raised."""
    tasks = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    try:
        a, b = await asyncio.gather(*tasks)
        return a, b
    except BaseException:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if hasattr(result, "close"):
                await result.close()
        raise


def _evaluator(context: EvaluationContext) -> Any:
    async def evaluate(step: int) -> Mapping[str, float]:
        from deepcoder_trainer.evaluation.run import evaluate_weights

        return await evaluate_weights(context, step)

    return evaluate


def _gate_text(gate: GateRecord | None) -> str:
    if gate is None:
        return ""
    return f"gate {'met' if gate.met else 'unmet'}: {gate.values}"
