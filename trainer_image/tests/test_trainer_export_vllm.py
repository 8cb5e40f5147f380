"""vLLM loads an export as it is, and says what transformers says of the source."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import export_world
import pytest

from deepcoder_trainer.export import prompts
from deepcoder_trainer.export.formats import Format
from deepcoder_trainer.heavy_imports import heavy_imports
from deepcoder_trainer.sampler.engine import CPU_ENVIRONMENT, ENVIRONMENT
from deepcoder_trainer.sampler.stepped import leave_the_compiler_out, register_architecture

pytestmark = pytest.mark.vllm


def ask(model: Path, dtype: str, tokens: list[list[int]], longest: int = 128) -> tuple[list[dict[int, float]], Any]:
    """What vLLM holds likeliest after each prompt; and how long a short chat was.

    Started as in a run's samplers and not in a process of its own: loading it is most of what the test costs.
    """
    os.environ.update(ENVIRONMENT | CPU_ENVIRONMENT)
    leave_the_compiler_out()
    with heavy_imports():
        from vllm import LLM, SamplingParams

        register_architecture(str(model))
    engine = LLM(
        str(model),
        dtype=dtype,
        max_model_len=longest,
        max_num_seqs=8,
        max_num_batched_tokens=1024,
        kv_cache_memory_bytes=64 << 20,
        enforce_eager=True,
        enable_prefix_caching=False,
    )
    try:
        greedy = SamplingParams(temperature=0, max_tokens=1, logprobs=5)
        answers = engine.generate([{"prompt_token_ids": ids} for ids in tokens], greedy, use_tqdm=False)
        likeliest = [{token: found.logprob for token, found in a.outputs[0].logprobs[0].items()} for a in answers]
        few = SamplingParams(temperature=0, max_tokens=4)
        [chat] = engine.chat([{"role": "user", "content": "print 1"}], few, use_tqdm=False)
        return likeliest, {"prompt": len(chat.prompt_token_ids), "answer": len(chat.outputs[0].token_ids)}
    finally:
        engine.llm_engine.engine_core.shutdown()


def served(form: Format, root: Path, dtype: str) -> tuple[list[dict[int, float]], list[Any], dict[str, int]]:
    """vLLM's log-probabilities after the prompts, and the source's by transformers in float32."""
    from transformers import AutoTokenizer

    from deepcoder_trainer.export.run import Order, export

    source = export_world.commit(export_world.make_model(root / "model"), root / "run")
    export(Order(f"file://{source}", f"file://{root}/out", form, shard_bytes=200_000), lambda _text: None)
    tokens = prompts.tokens(AutoTokenizer.from_pretrained(source))
    likeliest, chat = ask(root / "out", dtype, tokens)
    return likeliest, by_transformers(source, tokens), chat


def by_transformers(model: Path, tokens: list[list[int]]) -> list[Any]:
    """Log-probabilities after each prompt, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        return [loaded(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in tokens]


def test_vllm_serves_an_export_unchanged(tmp_path: Path) -> None:
    found, expected, chat = served(Format.HUGGINGFACE, tmp_path, "float32")
    for of_vllm, of_source in zip(found, expected, strict=True):
        assert len(of_vllm) == 5
        for token, logprob in of_vllm.items():
            assert logprob == pytest.approx(float(of_source[token]), abs=1e-3)
    assert chat["prompt"] > 8
    assert chat["answer"] == 4


@pytest.mark.long
def test_vllm_serves_fp8_within_its_rounding(tmp_path: Path) -> None:
    found, expected, chat = served(Format.FP8, tmp_path, "bfloat16")
    gaps = [
        abs(logprob - float(of_source[token]))
        for of_vllm, of_source in zip(found, expected, strict=True)
        for token, logprob in of_vllm.items()
    ]
    assert 0 < sum(gaps) / len(gaps) < 0.1
    assert chat["answer"] == 4


@pytest.mark.long
def test_vllm_serves_an_export_with_scaled_positions_beyond_those_it_was_trained_for(tmp_path: Path) -> None:
    from deepcoder_trainer.export.run import Order, export

    source = export_world.commit(export_world.make_model(tmp_path / "model"), tmp_path / "run")
    trained = json.loads((source / "config.json").read_text())["max_position_embeddings"]
    assert trained == 128
    export(Order(f"file://{source}", f"file://{tmp_path}/out", rope=512), lambda _text: None)
    tokens = [[(7 * n + 3 * length) % 300 for n in range(length)] for length in (20, 300, 480)]
    found, chat = ask(tmp_path / "out", "float32", tokens, longest=512)
    scaled, plain = by_transformers(tmp_path / "out", tokens), by_transformers(source, tokens)
    for of_vllm, of_export, of_source in zip(found, scaled, plain, strict=True):
        assert max(abs(logprob - float(of_export[token])) for token, logprob in of_vllm.items()) < 1e-3
        assert max(abs(logprob - float(of_source[token])) for token, logprob in of_vllm.items()) > 1e-2
    assert chat["answer"] == 4
