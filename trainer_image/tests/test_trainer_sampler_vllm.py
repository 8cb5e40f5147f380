"""A real vLLM engine behind both of its drives: one contract, the learner's log-probabilities, updates in flight."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from sampler_agreement import OneEngine, agree, agree_by_broadcast

from deepcoder_contracts.recipe import Recipe
from deepcoder_trainer.sampler import engine as engines
from deepcoder_trainer.sampler.pretrained import pretrained_chunks
from deepcoder_trainer.sampler.settings import EngineSettings
from deepcoder_trainer.tokenizer import load_tokenizer
from deepcoder_trainer.types import Finish, Generation, GenerationRequest, Wave

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]

SETTINGS = EngineSettings("float32", 128, 32, 2048, 64 << 20)
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def model(coder_model: Path) -> Path:
    return coder_model


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["stepped", "asynchronous"])
async def engine(request: pytest.FixtureRequest, model: Path) -> AsyncIterator[engines.Engine]:
    os.environ.update(engines.environment(SETTINGS))
    if request.param == "stepped":
        live = await engines.start_engine(str(model), SETTINGS)
    else:
        live = await engines.start_async_engine(engines.engine_arguments(str(model), SETTINGS))
    await push(live, model, 1)
    yield live
    await live.close()


async def test_what_an_engine_in_this_process_leaves_lies_beside_its_model(
    engine: engines.Engine, model: Path, request: pytest.FixtureRequest
) -> None:
    """Of the machine's temporary folder nobody would remove it."""
    in_this_process = request.node.callspec.params["engine"] == "stepped"
    assert bool(list(model.glob("vllm_dist_*"))) or not in_this_process


async def push(engine: engines.Engine, model: Path, version: int, *, shift: float = 0.0, clear: bool = False) -> None:
    def moved(chunk: Any) -> Any:
        return {name: array + np.float32(shift) for name, array in chunk.items()}

    def fetcher(chunk: Any) -> Callable[[], Any]:
        async def fetch() -> Any:
            return moved(chunk)

        return fetch

    # Small chunks, so that several make up one update.
    chunks = [fetcher(c) for c in pretrained_chunks(model, "float32", chunk_bytes=40_000)]
    assert len(chunks) > 1
    await engines.update_weights(engine, chunks, version, dtype="float32", clear_cache=clear)


def requests(count: int, tokens: int, *, name: str = "r", temperature: float = TEMPERATURE) -> list[GenerationRequest]:
    return [
        GenerationRequest(f"{name}{i}", np.array([5, 9, 20 + i], np.int32), tokens, temperature, seed=100 + i)
        for i in range(count)
    ]


async def generate(engine: engines.Engine, asked: Sequence[GenerationRequest]) -> list[Generation]:
    return list(await asyncio.gather(*await engine.begin(asked)))


def reference_logprobs(model: Path, prompt: Sequence[int], output: Sequence[int], shift: float) -> np.ndarray:
    import torch
    from transformers import Qwen2ForCausalLM

    network = Qwen2ForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(shift)
        logits = network(torch.tensor([[*prompt, *output]])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        return logits.log_softmax(-1).gather(1, torch.tensor(output)[:, None])[:, 0].numpy()


async def test_logprobs_equal_the_learners_after_every_update(
    engine: engines.Engine,
    model: Path,
    make_learner: Callable[..., Any],
    make_recipe: Callable[..., Recipe],
    make_batch: Callable[..., Any],
) -> None:
    learner = make_learner(make_recipe(learning_rate=3e-3), model)
    await agree(OneEngine(engine), learner, make_batch)


async def test_logprobs_equal_the_learners_where_it_sends_to_the_engines_workers(
    engine: engines.Engine,
    model: Path,
    make_learner: Callable[..., Any],
    make_recipe: Callable[..., Recipe],
    make_batch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = make_learner(make_recipe(learning_rate=3e-3), model)
    await agree_by_broadcast(OneEngine(engine), learner, make_batch, monkeypatch)


async def test_a_response_ends_with_its_end_token_or_at_its_limit(engine: engines.Engine, model: Path) -> None:
    await push(engine, model, 3)
    for generation in await generate(engine, requests(32, 60, name="ends-", temperature=1.5)):
        assert len(generation.logprobs) == len(generation.output_ids)
        if generation.finish is Finish.LENGTH:
            assert len(generation.output_ids) == 60
            assert 1 not in generation.output_ids.tolist()
        else:
            assert generation.output_ids[-1] == 1
        assert "<eos>" not in generation.text


async def test_the_same_seed_gives_the_same_response(engine: engines.Engine, model: Path) -> None:
    await push(engine, model, 4)
    first = await generate(engine, requests(4, 20, name="once-"))
    again = await generate(engine, requests(4, 20, name="again-"))
    assert [g.output_ids.tolist() for g in first] == [g.output_ids.tolist() for g in again]


@pytest.mark.parametrize("clear", [False, True], ids=["stale cache", "recomputed cache"])
async def test_responses_in_flight_go_on_with_new_weights_and_say_where(
    engine: engines.Engine, model: Path, clear: bool
) -> None:
    await push(engine, model, 5)
    asked = requests(24, 120, name=f"flight{clear}-")
    first = GenerationRequest(f"first{clear}", asked[0].prompt_ids, 1, TEMPERATURE, seed=1)
    [begun, *pending] = await engine.begin([first, *asked])
    await begun  # all others have their first token too
    await push(engine, model, 6, shift=0.02, clear=clear)
    generations = await asyncio.gather(*pending)
    crossing = [g for g in generations if len(g.versions) == 2]
    assert crossing, "the update came while responses were sampled"
    for generation in generations:
        spans = generation.versions
        assert spans[0].start == 0
        assert spans[-1].end == len(generation.output_ids)
        assert all(a.end == b.start for a, b in itertools.pairwise(spans))
        assert [s.version for s in spans] == sorted(s.version for s in spans)
    if clear:
        # With a recomputed cache, tokens after the update are exactly the new model's.
        at, generation = next((i, g) for i, g in enumerate(generations) if len(g.versions) == 2)
        output = generation.output_ids.tolist()
        expected = reference_logprobs(model, [5, 9, 20 + at], output, 0.02)
        start = generation.versions[1].start
        np.testing.assert_allclose(generation.logprobs[start:], expected[start:], atol=1e-5)


async def test_what_is_in_flight_when_an_engine_sleeps_goes_on_when_it_wakes(engine: engines.Engine) -> None:
    pending = await engine.begin(requests(8, 100, name="slept-"))
    await engine.sleep()
    if isinstance(engine, engines.AsyncEngine):  # vLLM's own, as far as CPUs have it
        await engine._engine.sleep(level=0, mode="keep")
    await asyncio.sleep(0.1)  # for what was on its way
    before = [response.done() for response in pending]  # type: ignore[attr-defined]
    await asyncio.sleep(0.3)
    assert [response.done() for response in pending] == before  # type: ignore[attr-defined]
    if isinstance(engine, engines.AsyncEngine):
        await engine._engine.wake_up(tags=["scheduling"])
    await engine.wake("weights")
    await engine.wake("kv_cache")
    async with asyncio.timeout(60):
        for generation in await asyncio.gather(*pending):
            assert generation.finish is Finish.STOP or len(generation.output_ids) == 100


async def test_a_request_that_cannot_fit_is_refused_alone(engine: engines.Engine, model: Path) -> None:
    too_long = GenerationRequest("long", np.arange(2, 200, dtype=np.int32), 10, 1.0, seed=1)
    with pytest.raises(ValueError, match="128"):
        await generate(engine, [too_long])
    assert len(await generate(engine, requests(2, 5, name="after-"))) == 2


async def test_a_wave_starts_in_order_whatever_order_it_arrives_in(engine: engines.Engine) -> None:
    from dataclasses import replace

    from deepcoder_trainer.sampler.waves import Waves

    async def run(order: Sequence[int], name: str) -> list[list[int]]:
        waves = Waves()
        asked = [replace(r, wave=Wave(name, i, 6)) for i, r in enumerate(requests(6, 30, name=name))]
        tasks = {i: asyncio.create_task(waves.generate(engine, asked[i])) for i in order}
        return [(await tasks[i]).output_ids.tolist() for i in range(6)]

    assert await run([0, 1, 2, 3, 4, 5], "wave-a") == await run([4, 2, 5, 0, 3, 1], "wave-b")


class Answering:
    """vLLM's engine, either of them, that answers each request with the same tokens and decodes with its tokenizer."""

    def __init__(self, folder: str, token_ids: list[int]) -> None:
        self.folder, self.token_ids = folder, token_ids
        self.asked: list[str] = []

    def get_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    def collective_rpc(self, method: str, kwargs: Any) -> Any:
        done: asyncio.Queue[None] = asyncio.Queue()
        done.put_nowait(None)
        return done.get()

    def answer(self, name: str) -> Any:
        output = SimpleNamespace(request_id=name, finished=True, outputs=[])
        zeros = SimpleNamespace(logprobs=[0.0] * len(self.token_ids), start_indices=range(len(self.token_ids)))
        completion = SimpleNamespace(
            token_ids=self.token_ids, logprobs=zeros, finish_reason="stop", weight_versions=None
        )
        output.outputs.append(completion)
        return output


class AnsweringAsync(Answering):
    async def add_request(self, name: str, prompt: Any, parameters: Any) -> asyncio.Queue[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        queue.put_nowait(self.answer(name))
        return queue


class AnsweringStepped(Answering):
    def collective_rpc(self, method: str, kwargs: Any) -> None: ...

    def add_request(self, name: str, *_: Any) -> None:
        self.asked.append(name)

    def has_unfinished_requests(self) -> bool:
        return bool(self.asked)

    def step(self) -> list[Any]:
        return [self.answer(self.asked.pop())]


@pytest.mark.parametrize("stepped", [True, False], ids=["stepped", "asynchronous"])
@pytest.mark.parametrize("architecture", ["Llama", "Qwen3"])
async def test_a_program_comes_back_as_written_from_a_model_that_names_anothers_tokenizer_class(
    architecture: str, stepped: bool, make_coder_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As DeepSeek-R1-Distill-Llama and DeepSeek-R1-0528-Qwen3-8B do: their class would write `defĠf():Ċ`."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    folder = make_coder_model(architecture)
    named = folder / "tokenizer_config.json"
    named.write_text(json.dumps(json.loads(named.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}))
    program = "def f(x):\n    return 'é' if x else \"a  b\"\n"
    token_ids = load_tokenizer(folder).encode(program)
    answers: Any = (AnsweringStepped if stepped else AnsweringAsync)(str(folder), token_ids)
    monkeypatch.setattr(LLMEngine if stepped else AsyncLLM, "from_engine_args", lambda _arguments: answers)
    if stepped:
        engine = await engines.start_engine(str(folder), SETTINGS)
    else:
        engine = await engines.start_async_engine(engines.engine_arguments(str(folder), SETTINGS))
    [response] = await engine.begin(requests(1, 1))
    async with asyncio.timeout(60):
        assert (await response).text == program
