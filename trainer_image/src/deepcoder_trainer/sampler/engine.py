"""A vLLM engine behind one small face, driven in one of two ways.

On CPUs the engine core runs in this process and a thread of ours steps it: vLLM's asynchronous engine starts two
more processes, each of which imports torch and vLLM again (about ten seconds of CPU time each), which a run of three
stages on two cores would pay three times. On GPUs it is the asynchronous engine, whose processes keep tokenizing and
scheduling off the GPU's critical path. Both obey the same contract tests.

Failures: a request that the engine refuses raises `ValueError` for that request alone. An error in a step or in a
weight update ends the engine: every request in flight raises `SamplerLost`, and so does every later call.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deepcoder_trainer.sampler.plugin import BACKEND
from deepcoder_trainer.sampler.settings import EngineSettings
from deepcoder_trainer.types import Finish, Generation, GenerationRequest, SamplerLost, VersionSpan

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What vLLM must find before it is imported."""
CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Threads that spin at a barrier starve learner and judges on the same cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Cores are shared by several processes here: the kernel places threads better than fixed affinities.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class Engine(Protocol):
    """A live engine. Calls may come concurrently from one event loop."""

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response."""
        ...

    async def pause(self) -> None:
        """Stop stepping; requests in flight are kept, new ones are accepted and wait."""
        ...

    async def resume(self, *, clear_cache: bool) -> None:
        """Go on. With `clear_cache`, keys and values of requests in flight are computed anew."""
        ...

    async def weights_call(self, method: str, **kwargs: Any) -> None:
        """One call of vLLM's weight-transfer API on every worker."""
        ...

    async def set_version(self, version: int) -> None:
        """Tokens from here on are labelled with this version."""
        ...

    async def close(self) -> None:
        """End the engine."""
        ...


def environment(settings: EngineSettings) -> dict[str, str]:
    """Environment variables an engine's process must have before torch and vLLM are imported."""
    extra = {} if settings.accelerators else CPU_ENVIRONMENT
    if settings.deterministic and settings.accelerators:
        extra = {**extra, "VLLM_BATCH_INVARIANT": "1"}
    return {**ENVIRONMENT, **extra}


async def start_engine(model: str, settings: EngineSettings) -> Engine:
    """Start an engine on a folder with config and tokenizer. It has no weights until the first update."""
    os.environ.update(environment(settings))
    if settings.accelerators:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(model, settings)))
        await engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
        return AsyncEngine(engine)
    stepped = SteppedEngine(model, settings)
    await stepped.started()
    return stepped


def engine_arguments(model: str, settings: EngineSettings) -> dict[str, Any]:
    """vLLM's engine arguments."""
    common: dict[str, Any] = {
        "model": model,
        "load_format": "dummy",  # the learner's weights come before the first request
        "dtype": settings.dtype,
        "seed": settings.seed,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "tensor_parallel_size": settings.tensor_parallel,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # the model's own sampling defaults must not bias training
        "weight_transfer_config": {"backend": BACKEND},
        "disable_log_stats": True,
    }
    if settings.accelerators:
        common |= {"gpu_memory_utilization": 0.9}
    else:
        # A seeded request whose prefill is split ends the engine on CPUs, hence no chunked prefill.
        common |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": settings.kv_cache_bytes,
            "enable_chunked_prefill": False,
            "enable_prefix_caching": False,
        }
    if settings.deterministic:
        common |= {"enable_prefix_caching": False, "enable_chunked_prefill": False}
    return common


def sampling_parameters(request: GenerationRequest) -> Any:
    """vLLM's SamplingParams of a request: one final answer, log-probabilities of the sampled tokens alone."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        max_tokens=request.max_tokens,
        logprobs=0,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def generation_from(output: Any) -> Generation:
    """A finished vLLM output as our value."""
    completion = output.outputs[0]
    flat = completion.logprobs
    return Generation(
        output_ids=np.asarray(completion.token_ids, np.int32),
        # The sampled token comes first among a position's entries.
        logprobs=np.asarray([flat.logprobs[start] for start in flat.start_indices], np.float32),
        finish=Finish.LENGTH if completion.finish_reason == "length" else Finish.STOP,
        text=completion.text,
        versions=tuple(VersionSpan(int(v.version), v.start, v.end) for v in completion.weight_versions or ()),
    )


def register_architecture(model: str) -> None:
    """Import the model's class here; vLLM otherwise starts a process that imports all of torch to look at it."""
    from transformers import AutoConfig
    from vllm.model_executor.models import ModelRegistry

    for name in AutoConfig.from_pretrained(model).architectures or ():
        known = ModelRegistry.models.get(name)
        if known is not None:
            ModelRegistry.models.pop(name)
            ModelRegistry.register_model(name, known.load_model_cls())


@dataclass
class _Call:
    """Something for the stepping thread to do between two steps."""

    function: Callable[[Any], Any]
    done: Future[Any]


class SteppedEngine:
    """vLLM's engine core in this process; one thread owns it and steps it."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Generation]] = {}
        self._paused = False
        self._failure: BaseException | None = None
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(model, settings), name="vllm-step", daemon=True)
        self._thread.start()

    async def started(self) -> None:
        """Wait until the engine is up; raises what kept it from starting."""
        await asyncio.wrap_future(self._ready)

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response."""
        return await self._generate(request)

    def _generate(self, request: GenerationRequest) -> Awaitable[Generation]:
        result: Future[Generation] = Future()

        def add(engine: Any) -> None:
            parameters = sampling_parameters(request)
            engine.add_request(request.request_id, {"prompt_token_ids": request.prompt_ids.tolist()}, parameters)
            self._waiting[request.request_id] = result

        def added(call: Future[None]) -> None:
            if (error := call.exception()) is not None:
                result.set_exception(error)

        self._submit(add).add_done_callback(added)
        return asyncio.wrap_future(result)

    async def pause(self) -> None:
        """Stop stepping."""

        def pause(_engine: Any) -> None:
            self._paused = True

        await asyncio.wrap_future(self._submit(pause))

    async def resume(self, *, clear_cache: bool) -> None:
        """Step again."""

        def resume(engine: Any) -> None:
            if clear_cache:
                engine.reset_prefix_cache(reset_running_requests=True)
            self._paused = False

        await asyncio.wrap_future(self._submit(resume))

    async def weights_call(self, method: str, **kwargs: Any) -> None:
        """One call of the weight-transfer API."""
        await asyncio.wrap_future(self._submit(lambda engine: engine.collective_rpc(method, kwargs=kwargs)))

    async def set_version(self, version: int) -> None:
        """Label tokens from here on."""
        await asyncio.wrap_future(self._submit(lambda engine: engine.set_weight_version(str(version))))

    async def close(self) -> None:
        """End the thread; requests in flight raise SamplerLost."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join, 30)

    def _submit(self, function: Callable[[Any], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        self._calls.put(_Call(function, done))
        if self._failure is not None:  # the thread has ended, or ends now: nobody may be left to answer
            self._fail_rest()
        return done

    def _run(self, model: str, settings: EngineSettings) -> None:
        try:
            engine = self._start(model, settings)
        except BaseException as error:
            self._failure = error
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        try:
            while self._serve_calls(engine):
                if not self._paused and engine.has_unfinished_requests():
                    for output in engine.step():
                        if output.finished:
                            self._waiting.pop(output.request_id).set_result(generation_from(output))
            self._failure = SamplerLost("the engine was closed")
        except BaseException as error:
            self._failure = error
        self._fail_rest()

    def _start(self, model: str, settings: EngineSettings) -> Any:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        register_architecture(model)
        engine = LLMEngine.from_engine_args(EngineArgs(**engine_arguments(model, settings)))
        engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
        return engine

    def _serve_calls(self, engine: Any) -> bool:
        """Do all waiting calls; wait for one while there is nothing to step. False ends the engine."""
        while True:
            idle = self._paused or not engine.has_unfinished_requests()
            try:
                call = self._calls.get(block=idle)
            except queue.Empty:
                return True
            if call is None:
                return False
            try:
                call.done.set_result(call.function(engine))
            except (ValueError, TypeError) as error:
                call.done.set_exception(error)
            except BaseException as error:
                call.done.set_exception(SamplerLost(f"the engine failed: {error}"))
                raise

    def _fail_rest(self) -> None:
        lost = SamplerLost(f"the engine ended: {self._failure}")
        while self._waiting:
            with suppress(KeyError):
                self._waiting.popitem()[1].set_exception(lost)
        with suppress(queue.Empty):
            while True:
                if (call := self._calls.get_nowait()) is not None:
                    call.done.set_exception(lost)


class AsyncEngine:
    """vLLM's asynchronous engine: the core and its workers in processes of their own."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        final: Any = None
        try:
            prompt = {"prompt_token_ids": request.prompt_ids.tolist()}
            async for output in self._engine.generate(prompt, sampling_parameters(request), request.request_id):
                final = output
        except (EngineDeadError, EngineGenerateError) as error:
            raise SamplerLost(f"the engine failed: {error}") from error
        return generation_from(final)

    async def pause(self) -> None:
        """Freeze requests in flight."""
        await self._engine.pause_generation(mode="keep", clear_cache=False)

    async def resume(self, *, clear_cache: bool) -> None:
        """Go on."""
        if clear_cache:
            await self._engine.reset_prefix_cache(reset_running_requests=True)
        await self._engine.resume_generation()

    async def weights_call(self, method: str, **kwargs: Any) -> None:
        """One call of the weight-transfer API."""
        await self._engine.collective_rpc(method, kwargs=kwargs)

    async def set_version(self, version: int) -> None:
        """Label tokens from here on."""
        await self._engine.update_weight_version(str(version))

    async def close(self) -> None:
        """End the processes."""
        self._engine.shutdown()


async def update_weights(
    engine: Engine, chunks: Sequence[Callable[[], Awaitable[Any]]], version: int, *, dtype: str, clear_cache: bool
) -> None:
    """Pause, load all chunks (each fetched when its turn comes), label, resume. An error leaves the engine paused."""
    from deepcoder_trainer.sampler.weights import shared_chunk

    await engine.pause()
    await engine.weights_call("start_weight_update")
    for fetch in chunks:
        chunk = await fetch()
        with shared_chunk(chunk, dtype) as path:
            await engine.weights_call("update_weights", update_info={"path": path})
    await engine.weights_call("finish_weight_update")
    await engine.set_version(version)
    await engine.resume(clear_cache=clear_cache)
