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
"""What vLLM must find before it is imported."""
CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    **THREADS,
    # Cores are shared by several processes here: the kernel places threads better than fixed affinities.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # vLLM compiles a helper of its log-probabilities with the C++ compiler, which the image does without; run as
    # written it costs microseconds a step.
    "TORCHDYNAMO_DISABLE": "1",
}


class Engine(Protocol):
    """A live engine. Calls may come concurrently from one event loop."""

    async def begin(self, requests: Sequence[GenerationRequest]) -> list[Awaitable[Generation]]:
        """Start requests together, in this order, before any step; returns their responses to come."""
        ...

    async def pause(self) -> None:
        """Stop stepping; requests in flight are kept, new ones, even several together, are accepted and wait."""
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

    async def sleep(self) -> None:
        """Pause, and give back the device's memory where it is shared; what is in flight waits."""
        ...

    async def wake(self, part: Part) -> None:
        """Take memory for weights, then, when these are loaded, for keys and values; then it goes on."""
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
        return await start_async_engine(engine_arguments(model, settings), sleeps=settings.colocated)
    from deepcoder_trainer.sampler.stepped import SteppedEngine

    # What this container may use, known only where the engine runs; read when torch is first imported.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads(settings)))
    stepped = SteppedEngine(model, settings)
    await stepped.started()
    return stepped


def threads(settings: EngineSettings) -> int:
    """CPU threads that an engine in this process computes with."""
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
    """vLLM's asynchronous engine: the core and its workers in processes of their own.

    A wave that starts pauses it, and so does an update: it goes on when nobody has it paused any more, since an engine
    resumed in the middle of an update would sample from half-loaded weights.
    """

    def __init__(self, engine: Any, tokenizer: Any, *, sleeps: bool = False) -> None:
        """`tokenizer` writes responses as text. `sleeps`: vLLM was started with its sleep mode, which no CPU has."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._sleeps = sleeps
        self._pauses = 0
        self._switching = asyncio.Lock()

    async def begin(self, requests: Sequence[GenerationRequest]) -> list[Awaitable[Generation]]:
        """Start requests; several only begin to run when all have been added."""
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
        """Freeze requests in flight; each pause needs a resume of its own."""
        async with self._switching:
            if not self._pauses:
                await self._engine.pause_generation(mode="keep", clear_cache=False)
            self._pauses += 1

    async def resume(self, *, clear_cache: bool) -> None:
        """Go on, unless somebody else has it paused."""
        async with self._switching:
            if clear_cache:
                await self._engine.reset_prefix_cache(reset_running_requests=True)
            self._pauses -= 1
            if not self._pauses:
                await self._engine.resume_generation()

    async def weights_call(self, method: str, **kwargs: Any) -> None:
        """One call of the weight-transfer API."""
        await self._engine.collective_rpc(method, kwargs=kwargs)

    async def set_version(self, version: int) -> None:
        """Label tokens from here on."""
        await self._engine.update_weight_version(str(version))

    async def sleep(self) -> None:
        """Pause, and discard weights, keys and values: new weights come before it wakes.

        A stop may find requests in flight. They are kept, for vLLM would end them as if the engine had failed.
        """
        await self.pause()
        if self._sleeps:
            await self._engine.sleep(level=2, mode="keep")

    async def wake(self, part: Part) -> None:
        """Take memory for a part; with the last one it goes on, which vLLM does by itself then."""
        if self._sleeps:
            await self._engine.wake_up(tags=[part])
        if part == "kv_cache":
            await self.resume(clear_cache=False)

    async def close(self) -> None:
        """End the processes."""
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
    """Pause, load all, label, resume. An error leaves the engine paused.

    Each chunk is fetched when its turn comes; of `cards`, each worker takes the weights that lie on its own, and of
    `broadcast` what the learner sends meanwhile.
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
