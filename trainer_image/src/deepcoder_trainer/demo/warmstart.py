"""Teaching the demo's model by example: a small Qwen2 fitted to sloppy answers.

Plain supervised learning on the answers' tokens, the prompts masked out. Problems are drawn afresh, apart from the
training and the held-back problems, so that the warm start has seen neither. With the thread count fixed the result
is a function of the seed (on one machine and one build of torch).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from deepcoder_trainer.demo.generator import Chain
from deepcoder_trainer.demo.programs import Sloppiness, sloppy_answer
from deepcoder_trainer.problems.prompt import encode_prompt

_IGNORED = -100
"""Label that cross_entropy leaves out."""


@dataclass(frozen=True)
class WarmStart:
    """Settings of the supervised part."""

    steps: int = 400
    batch_size: int = 64
    peak_learning_rate: float = 2e-3
    threads: int = 1
    sloppiness: Sloppiness = field(default_factory=Sloppiness)


@dataclass(frozen=True)
class Example:
    """One prompt with one answer, as token ids."""

    ids: list[int]
    prompt_length: int


def small_qwen2(vocab_size: int, end_id: int, pad_id: int, context_tokens: int, seed: int) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 of under a million parameters, in float32."""
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context_tokens,
        tie_word_embeddings=True,
        eos_token_id=end_id,
        pad_token_id=pad_id,
        bos_token_id=None,
        dtype="float32",
    )
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config)


def warm_start(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    chains: Iterator[Chain],
    settings: WarmStart,
    seed: int,
    report: Callable[[int, float], None],
) -> None:
    """Fit `model` in place to sloppy answers to `chains`; `report(step, loss)` is called after every step."""
    torch.set_num_threads(settings.threads)
    rng = random.Random(f"warm-start/{seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.peak_learning_rate, betas=(0.9, 0.98), weight_decay=0)
    model.train()
    batches = _batches(tokenizer, chains, rng, settings)
    for step in range(1, settings.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, settings)
        ids, labels = _padded(next(batches), tokenizer.pad_token_id)
        # Padding is on the right and attention is causal: no answer token ever sees it.
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report(step, loss.item())
    model.eval()


def _learning_rate(step: int, settings: WarmStart) -> float:
    """Linear over the first twentieth, then a cosine to a twentieth of the peak."""
    warmup = max(1, settings.steps // 20)
    if step <= warmup:
        return settings.peak_learning_rate * step / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    return settings.peak_learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def _batches(
    tokenizer: PreTrainedTokenizerFast, chains: Iterator[Chain], rng: random.Random, settings: WarmStart
) -> Iterator[list[Example]]:
    """Batches of examples of similar length (little padding), in random order."""
    while True:
        examples = [
            _example(tokenizer, next(chains), rng, settings.sloppiness) for _ in range(16 * settings.batch_size)
        ]
        examples.sort(key=lambda e: len(e.ids))
        batches = [examples[i : i + settings.batch_size] for i in range(0, len(examples), settings.batch_size)]
        rng.shuffle(batches)
        yield from batches


def _example(tokenizer: PreTrainedTokenizerFast, chain: Chain, rng: random.Random, sloppiness: Sloppiness) -> Example:
    prompt = encode_prompt(chain.statement, tokenizer).tolist()
    answer = tokenizer(sloppy_answer(chain, rng, sloppiness), add_special_tokens=False)["input_ids"]
    return Example([*prompt, *answer, tokenizer.eos_token_id], len(prompt))


def _padded(batch: list[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """([N, T] ids, [N, T] labels): padded on the right, labels of prompt and padding ignored."""
    longest = max(len(e.ids) for e in batch)
    ids = torch.full((len(batch), longest), pad_id, dtype=torch.long)
    labels = torch.full((len(batch), longest), _IGNORED, dtype=torch.long)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        labels[row, example.prompt_length : len(example.ids)] = torch.tensor(example.ids[example.prompt_length :])
    return ids, labels
