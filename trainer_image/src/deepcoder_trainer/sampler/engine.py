"""A vLLM engine behind a small interface, driven in one of two ways.

On CPUs the engine core runs in this process, and our own thread steps it. vLLM's asynchronous engine would start two
more processes that import torch and vLLM again, for about ten seconds of CPU time each, and a run of three stages on
two cores would pay that three times. On GPUs the asynchronous engine is used, whose processes keep tokenizing and
scheduling off the GPU's critical path. Both pass the same contract tests.

Failures: a request that the engine refuses raises `ValueError` for that request only. An error in a step or in a weight
update ends the engine: every request in flight, and every later call, raises `SamplerLost`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from deepcoder_trainer.cluster import THREADS
from deepcoder_trainer.cpus import compute_threads
from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.heavy_imports import heavy_imports
from deepcoder_trainer.sampler.settings import EngineSettings
from deepcoder_trainer.sampler.translation import Part, engine_arguments, generation_from, refusal, sampling_parameters
from deepcoder_trainer.tokenizer import load_tokenizer
from deepcoder_trainer.types import BroadcastWeights, CardWeights, Generation, GenerationRequest

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment variables that must be set before vLLM is imported."""
CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    **THREADS,
    # Several processes share the cores, and the kernel places threads better than fixed affinities.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # vLLM would compile a log-probability helper with a C++ compiler, which the image does not have. Run eagerly, the
    # helper costs microseconds per step.
    "TORCHDYNAMO_DISABLE": "1",
}


class Engine(Protocol):
    """A live engine. Calls may come concurrently from one event loop."""

    async def begin(self, requests: Sequence[GenerationRequest]) -> list[Awaitable[Generation]]:
        """Start requests together, in this order, before the next step. Return their future responses."""
        ...

    async def pause(self) -> None:
        """Stop stepping. Requests in flight are kept; new ones, also several together, are accepted and wait."""
        ...

    async def resume(self, *, clear_cache: bool) -> None:
        """Continue. With `clear_cache`, the KV cache of requests in flight is recomputed."""
        ...

    async def weights_call(self, method: str, **kwargs: Any) -> None:
        """Call a method of vLLM's weight-transfer API on every worker."""
        ...

    async def set_version(self, version: int) -> None:
        """Label tokens that are sampled from now on with this version."""
        ...

    async def sleep(self) -> None:
        """Pause, and free the device's memory if it is shared. Requests in flight wait."""
        ...

    async def wake(self, part: Part) -> None:
        """Allocate memory for the weights or, once these are loaded, for the KV cache; after that, continue."""
        ...

    async def close(self) -> None:
        """Shut down the engine."""
        ...


def environment(settings: EngineSettings) -> dict[str, str]:
    """Return the environment variables that an engine's process needs before torch and vLLM are imported."""
    extra = {} if settings.accelerators else CPU_ENVIRONMENT
    if settings.deterministic and settings.accelerators:
        extra = {**extra, "VLLM_BATCH_INVARIANT": "1"}
    return {**ENVIRONMENT, **extra}


async def start_engine(model: str, settings: EngineSettings) -> Engine:
    """Start an engine for a folder with config and tokenizer. It has no weights until the first update."""
    os.environ.update(environment(settings))
    if settings.accelerators:
        return await start_async_engine(engine_arguments(model, settings), sleeps=settings.colocated)
    from deepcoder_trainer.sampler.stepped import SteppedEngine

    # The container's CPU limit is known only here, on the engine's node. torch reads the variable when imported.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads(settings)))
    stepped = SteppedEngine(model, settings)
    await stepped.started()
    return stepped


def threads(settings: EngineSettings) -> int:
    """Return the number of CPU compute threads of an engine in this process."""
    return compute_threads(settings.deterministic)


async def start_async_engine(arguments: dict[str, Any], *, sleeps: bool = False) -> AsyncEngine:
    """Start the asynchronous engine, on whatever device vLLM finds."""
    with heavy_imports():
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

    tokenizer = await asyncio.to_thread(load_tokenizer, Path(arguments["model"]))
    engine = await asyncio.to_thread(AsyncLLM.from_engine_args, AsyncEngineArgs(**arguments))
    await engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
    return AsyncEngine(engine, tokenizer, sleeps=sleeps)


class AsyncEngine:
    """vLLM's asynchronous engine, whose core and workers are separate processes.

    Both the start of a wave and an update pause the engine. Pauses are counted, and it continues after the last one
    ends: if a wave resumed it in the middle of an update, it would sample from half-loaded weights.
    """

    def __init__(self, engine: Any, tokenizer: Any, *, sleeps: bool = False) -> None:
        """`tokenizer` decodes responses. `sleeps`: vLLM was started with its sleep mode, which CPUs do not support."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._sleeps = sleeps
        self._pauses = 0
        self._switching = asyncio.Lock()

    async def begin(self, requests: Sequence[GenerationRequest]) -> list[Awaitable[Generation]]:
        """Start requests. Several requests start to run only when all of them have been added."""
        if len(requests) == 1:
            return await self._add(requests)
        await self.pause()
        try:
            return await self._add(requests)
        finally:
            await self.resume(clear_cache=False)

    async def _add(self, requests: Sequence[GenerationRequest]) -> list[Awaitable[Generation]]:
        queues = []
        try:
            for request in requests:
                prompt = {"prompt_token_ids": request.prompt_ids.tolist()}
                queues.append(await self._engine.add_request(request.request_id, prompt, sampling_parameters(request)))
        except Exception as error:
            raise refusal(error) or SamplerLost(f"the engine failed: {error}") from error
        return [asyncio.ensure_future(self._response(queue)) for queue in queues]

    async def _response(self, queue: Any) -> Generation:
        try:
            while True:
                output = await queue.get()
                if output.finished:
                    return generation_from(output, self._tokenizer)
        except Exception as error:
            raise refusal(error) or SamplerLost(f"the engine failed: {error}") from error

    async def pause(self) -> None:
        """Freeze requests in flight. Each pause needs its own `resume`."""
        async with self._switching:
            if not self._pauses:
                await self._engine.pause_generation(mode="keep", clear_cache=False)
            self._pauses += 1

    async def resume(self, *, clear_cache: bool) -> None:
        """Continue, unless another pause remains."""
        async with self._switching:
            if clear_cache:
                await self._engine.reset_prefix_cache(reset_running_requests=True)
            self._pauses -= 1
            if not self._pauses:
                await self._engine.resume_generation()

    async def weights_call(self, method: str, **kwargs: Any) -> None:
        """See `Engine`."""
        await self._engine.collective_rpc(method, kwargs=kwargs)

    async def set_version(self, version: int) -> None:
        """See `Engine`."""
        await self._engine.update_weight_version(str(version))

    async def sleep(self) -> None:
        """Pause, and discard weights and KV cache. New weights are loaded before `wake`.

        During a stop there may be requests in flight. They are kept: vLLM would otherwise abort them, which looks like
        a failure of the engine.
        """
        await self.pause()
        if self._sleeps:
            await self._engine.sleep(level=2, mode="keep")

    async def wake(self, part: Part) -> None:
        """Allocate memory for `part`. With the last part, the engine continues; vLLM resumes by itself then."""
        if self._sleeps:
            await self._engine.wake_up(tags=[part])
        if part == "kv_cache":
            await self.resume(clear_cache=False)

    async def close(self) -> None:
        """Shut down the processes."""
        self._engine.shutdown()


async def update_weights(
    engine: Engine,
    chunks: Sequence[Callable[[], Awaitable[Any]]],
    version: int,
    *,
    dtype: str,
    clear_cache: bool,
    cards: Sequence[CardWeights] = (),
    broadcast: BroadcastWeights | None = None,
) -> None:
    """Pause the engine, load all weights, set the version, and resume. An error leaves the engine paused.

    Each chunk is fetched only when it is loaded next. With `cards`, each worker loads the weights from its own GPU;
    with `broadcast`, it receives what the learner sends meanwhile.
    """
    from deepcoder_trainer.sampler.weights import shared_chunk

    await engine.pause()
    await engine.weights_call("start_weight_update")
    if cards:
        places = {each.card: [list(each.handle), [list(tensor) for tensor in each.tensors]] for each in cards}
        await engine.weights_call("update_weights", update_info={"cards": places})
    if broadcast is not None:
        await engine.weights_call("update_weights", update_info={"broadcast": {**asdict(broadcast), "dtype": dtype}})
    for fetch in chunks:
        chunk = await fetch()
        with shared_chunk(chunk, dtype) as path:
            await engine.weights_call("update_weights", update_info={"path": path})
    await engine.weights_call("finish_weight_update")
    await engine.set_version(version)
    await engine.resume(clear_cache=clear_cache)
