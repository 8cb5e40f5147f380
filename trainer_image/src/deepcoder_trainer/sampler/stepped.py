"""vLLM's engine core in this process, stepped by our own thread: sampling on CPUs.

The thread owns the engine. Everything else reaches the engine through calls that the thread serves between two steps.
To pause means not to step, which makes in-flight updates and deterministic waves exact: all requests see a change
between the same two steps. Callers may go away: a call that was cancelled before its turn is not made, and a response
without a waiting caller is dropped.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.heavy_imports import heavy_imports
from deepcoder_trainer.sampler.settings import EngineSettings
from deepcoder_trainer.sampler.translation import Part, engine_arguments, generation_from, refusal, sampling_parameters
from deepcoder_trainer.tokenizer import load_tokenizer
from deepcoder_trainer.types import Generation, GenerationRequest


@dataclass
class _Call:
    """A function that the stepping thread calls between two steps."""

    function: Callable[[Any], Any]
    done: Future[Any]


class SteppedEngine:
    """vLLM's engine core in this process; one thread owns it and steps it."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Generation]] = {}
        self._pauses = 0
        self._tokenizer: Any = None
        """The model's tokenizer, once the engine is started."""
        self._failure: BaseException | None = None
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(model, settings), name="vllm-step", daemon=True)
        self._thread.start()

    async def started(self) -> None:
        """Wait until the engine is up. Raises the error that kept it from starting."""
        await asyncio.wrap_future(self._ready)

    async def begin(self, requests: Sequence[GenerationRequest]) -> list[Awaitable[Generation]]:
        """Start requests between two steps."""

        def add(engine: Any) -> list[Future[Generation]]:
            results: list[Future[Generation]] = []
            for request in requests:
                prompt = {"prompt_token_ids": request.prompt_ids.tolist()}
                engine.add_request(request.request_id, prompt, sampling_parameters(request))
                self._waiting[request.request_id] = Future()
                results.append(self._waiting[request.request_id])
            return results

        added = await asyncio.wrap_future(self._submit(add))
        return [asyncio.wrap_future(result) for result in added]

    async def pause(self) -> None:
        """Stop stepping. Each pause needs its own `resume`."""

        def pause(_engine: Any) -> None:
            self._pauses += 1

        await asyncio.wrap_future(self._submit(pause))

    async def resume(self, *, clear_cache: bool) -> None:
        """Step again, unless another pause remains."""

        def resume(engine: Any) -> None:
            if clear_cache:
                engine.reset_prefix_cache(reset_running_requests=True)
            self._pauses -= 1

        await asyncio.wrap_future(self._submit(resume))

    async def weights_call(self, method: str, **kwargs: Any) -> None:
        """See `Engine`."""
        await asyncio.wrap_future(self._submit(lambda engine: engine.collective_rpc(method, kwargs=kwargs)))

    async def set_version(self, version: int) -> None:
        """See `Engine`."""
        await asyncio.wrap_future(self._submit(lambda engine: engine.set_weight_version(str(version))))

    async def sleep(self) -> None:
        """Pause. vLLM cannot free memory on CPUs."""
        await self.pause()

    async def wake(self, part: Part) -> None:
        """Continue after the last part."""
        if part == "kv_cache":
            await self.resume(clear_cache=False)

    async def close(self) -> None:
        """End the thread. Requests in flight raise SamplerLost."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join, 30)

    def _submit(self, function: Callable[[Any], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        self._calls.put(_Call(function, done))
        if self._failure is not None:  # the thread has ended or is ending, and may never serve this call
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
                if not self._pauses and engine.has_unfinished_requests():
                    for output in engine.step():
                        if output.finished:
                            self._answer(output)
            self._failure = SamplerLost("the engine was closed")
        except BaseException as error:
            self._failure = error
        self._fail_rest()

    def _answer(self, output: Any) -> None:
        response = self._waiting.pop(output.request_id)
        if not response.set_running_or_notify_cancel():
            return
        try:
            response.set_result(generation_from(output, self._tokenizer))
        except SamplerLost as error:
            response.set_exception(error)

    def _start(self, model: str, settings: EngineSettings) -> Any:
        leave_the_compiler_out()
        leave_the_server_out()
        with heavy_imports():
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            register_architecture(model)
        self._tokenizer = load_tokenizer(Path(model))
        with _temporary_files_in(model):
            engine = LLMEngine.from_engine_args(EngineArgs(**engine_arguments(model, settings)))
        engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
        return engine

    def _serve_calls(self, engine: Any) -> bool:
        """Serve all waiting calls, and block for one while there is nothing to step. Return False to end the engine."""
        while True:
            idle = self._pauses > 0 or not engine.has_unfinished_requests()
            try:
                call = self._calls.get(block=idle)
            except queue.Empty:
                return True
            if call is None:
                return False
            if not call.done.set_running_or_notify_cancel():
                continue
            try:
                call.done.set_result(call.function(engine))
            except BaseException as error:
                refused = refusal(error)
                call.done.set_exception(refused or SamplerLost(f"the engine failed: {error}"))
                if refused is None:
                    raise

    def _fail_rest(self) -> None:
        lost = SamplerLost(f"the engine ended: {self._failure}")
        while self._waiting:
            with suppress(KeyError):
                _fail(self._waiting.popitem()[1], lost)
        with suppress(queue.Empty):
            while True:
                if (call := self._calls.get_nowait()) is not None:
                    _fail(call.done, lost)


def _fail(future: Future[Any], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


@contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    """Let vLLM create its temporary files in the model's folder: it leaves one rendezvous file behind per engine."""
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before


def leave_the_compiler_out() -> None:
    """Replace vLLM's patches of torch's compiler, whose import is a quarter of vLLM's load time. On CPUs nothing is
    compiled (TORCHDYNAMO_DISABLE)."""
    _stand_in("vllm.env_override", _apply_constrain_to_fx_strides_patch=lambda: None)  # the name that vLLM imports


def leave_the_server_out() -> None:
    """Replace modules of vLLM's API server, which the engine imports for the names of two classes. They import all of
    OpenAI's types, another quarter of the load time. Responses here are tokens: none is parsed, and no tool is called.
    """
    _stand_in("vllm.parser.engine.adapters", ParserEngineReasoningAdapter=type("ParserEngineReasoningAdapter", (), {}))
    _stand_in("vllm.entrypoints.mcp.tool_server", ToolServer=type("ToolServer", (), {}))


def _stand_in(module: str, **names: Any) -> None:
    """Put an empty module with these names in the place of a vLLM module, unless it has been imported."""
    found = ModuleType(module)
    vars(found).update(names)
    sys.modules.setdefault(module, found)


def register_architecture(model: str) -> None:
    """Import the model's class in this process. Otherwise vLLM starts a process that imports torch to inspect it."""
    from transformers import AutoConfig
    from vllm.model_executor.models import ModelRegistry

    for name in AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False).architectures or ():
        known = ModelRegistry.models.get(name)
        if known is not None:
            ModelRegistry.models.pop(name)
            ModelRegistry.register_model(name, known.load_model_cls())
