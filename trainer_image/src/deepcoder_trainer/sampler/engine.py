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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal, Protocol

import numpy as np

from deepcoder_trainer.cpus import compute_threads
from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.loading import loading
from deepcoder_trainer.sampler.plugin import BACKEND
from deepcoder_trainer.sampler.settings import EngineSettings
from deepcoder_trainer.types import BroadcastWeights, CardWeights, Finish, Generation, GenerationRequest, VersionSpan

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
    # vLLM compiles a helper of its log-probabilities with the C++ compiler, which the image does without; run as
    # written it costs microseconds a step.
    "TORCHDYNAMO_DISABLE": "1",
}
FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH}
"""vLLM's reasons for the end of a response; all others (abort, error, repetition) are no end of it."""


Part = Literal["weights", "kv_cache"]
"""What an engine that slept takes memory for, in this order; vLLM's own names."""


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
    with loading():
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

    engine = await asyncio.to_thread(AsyncLLM.from_engine_args, AsyncEngineArgs(**arguments))
    await engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
    return AsyncEngine(engine, sleeps=sleeps)


def engine_arguments(model: str, settings: EngineSettings) -> dict[str, Any]:
    """vLLM's engine arguments."""
    common: dict[str, Any] = {
        "model": model,
        "trust_remote_code": False,
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
        "enable_prefix_caching": settings.prefix_caching,
        "hf_overrides": dict(settings.model_entries),
    }
    if settings.accelerators:
        # Asleep, it leaves the learner on its card what it had taken for weights, keys and values.
        common |= {"gpu_memory_utilization": settings.memory_share, "enable_sleep_mode": settings.colocated}
    else:
        # A seeded request whose prefill is split ends the engine on CPUs, hence no chunked prefill.
        common |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": settings.kv_cache_bytes,
            "enable_chunked_prefill": False,
        }
    if settings.deterministic:
        common |= {"enable_chunked_prefill": False}
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
        detokenize=False,  # vLLM would decode token by token, and each again for its log-probability
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def generation_from(output: Any, tokenizer: Any) -> Generation:
    """A finished vLLM output as our value, its text decoded once.

    Raises `SamplerLost` for an output that ended for a reason of the engine's: half a response is none to learn from.
    """
    completion = output.outputs[0]
    if completion.finish_reason not in FINISHES:
        raise SamplerLost(f"the engine ended request {output.request_id} itself: {completion.finish_reason}")
    flat = completion.logprobs
    return Generation(
        output_ids=np.asarray(completion.token_ids, np.int32),
        # The sampled token comes first among a position's entries.
        logprobs=np.asarray([flat.logprobs[start] for start in flat.start_indices], np.float32),
        finish=FINISHES[completion.finish_reason],
        text=tokenizer.decode(completion.token_ids, skip_special_tokens=True),
        versions=tuple(VersionSpan(int(v.version), v.start, v.end) for v in completion.weight_versions or ()),
    )


class AsyncEngine:
    """vLLM's asynchronous engine: the core and its workers in processes of their own.

    A wave that starts pauses it, and so does an update: it goes on when nobody has it paused any more, since an engine
    resumed in the middle of an update would sample from half-loaded weights.
    """

    def __init__(self, engine: Any, *, sleeps: bool = False) -> None:
        """`sleeps`: vLLM was started with its sleep mode, which no CPU has."""
        self._engine = engine
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
                    return generation_from(output, self._engine.get_tokenizer())
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


def refusal(error: BaseException) -> ValueError | None:
    """The error as the request's own fault, None if it is the engine's. vLLM's own kind is no ValueError."""
    from vllm.exceptions import VLLMValidationError

    if isinstance(error, ValueError):
        return error
    return ValueError(str(error)) if isinstance(error, VLLMValidationError) else None


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
