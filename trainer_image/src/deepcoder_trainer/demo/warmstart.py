"""Warm-starts the demo's model: a small Qwen2 is fitted to the careless answers.

This is supervised learning on the answers' tokens, with the prompts masked out. Short problems come first, because the
model has to discover that line n answers phrase n, and on chains of two it does so in a fraction of the steps. Problems
are newly drawn and never held-out ones. With one thread the result is a function of the seed, for one build of torch,
however many cores there are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Set
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from deepcoder_trainer.demo.generator import MOST_STEPS, Chain, draw_chain
from deepcoder_trainer.demo.programs import Sloppiness, sloppy_answer
from deepcoder_trainer.problems.prompt import encode_prompt

_IGNORED = -100
"""Label that cross_entropy ignores."""
_BATCHES_AT_ONCE = 8


@dataclass(frozen=True)
class WarmStart:
    """Settings of the supervised part."""

    steps: int = 900
    batch_size: int = 24
    peak_learning_rate: float = 3e-3
    curriculum: tuple[tuple[float, int], ...] = ((0.15, 2), (0.3, 4), (1.0, MOST_STEPS))
    """(share, n): until this share of the steps, chains have at most n operations."""
    sloppiness: Sloppiness = field(default_factory=Sloppiness)


@dataclass(frozen=True)
class Example:
    """One prompt with one answer, as token ids."""

    ids: list[int]
    prompt_length: int


def small_qwen2(vocab_size: int, end_id: int, pad_id: int, context_tokens: int, seed: int) -> Qwen2ForCausalLM:
    """Return a randomly initialised Qwen2 with less than a million parameters, in float32."""
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context_tokens,
        tie_word_embeddings=True,
        # About 1 / sqrt(hidden_size). The usual 0.02 is for models forty times as wide. With it, this model needs
        # several times as many steps before it attends to the problem at all.
        initializer_range=0.08,
        eos_token_id=end_id,
        pad_token_id=pad_id,
        bos_token_id=None,
        dtype="float32",
    )
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config)


def warm_start(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    settings: WarmStart,
    seed: int,
    excluded: Set[str],
    report: Callable[[int, float], None],
) -> None:
    """Fit `model` in place to sloppy answers, without the statements in `excluded`.

    `report(step, loss)` is called after every step, with the loss in nats per token.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _fit(model, tokenizer, settings, random.Random(f"warm-start/{seed}"), excluded, report)
    finally:
        torch.set_num_threads(threads)


def _fit(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    settings: WarmStart,
    rng: random.Random,
    excluded: Set[str],
    report: Callable[[int, float], None],
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.peak_learning_rate, betas=(0.9, 0.98), weight_decay=0)
    model.train()
    waiting: list[list[Example]] = []
    for step in range(1, settings.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, settings)
        if not waiting:
            longest = next(most for share, most in settings.curriculum if step <= share * settings.steps)
            waiting = _batches(tokenizer, rng, settings, longest, excluded)
        ids, labels = _padded(waiting.pop(), tokenizer.pad_token_id)
        # Padding is on the right and attention is causal, so no answer token attends to it.
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report(step, loss.item())
    model.eval()


def _learning_rate(step: int, settings: WarmStart) -> float:
    """Return the learning rate: linear warm-up over the first 4 % of steps, then cosine decay to 5 % of the peak."""
    done = step / settings.steps
    return settings.peak_learning_rate * min(1, done / 0.04) * (0.05 + 0.475 * (1 + math.cos(math.pi * done)))


def _batches(
    tokenizer: PreTrainedTokenizerBase, rng: random.Random, settings: WarmStart, longest: int, excluded: Set[str]
) -> list[list[Example]]:
    """Draw a few batches of chains of at most `longest` operations. A batch has similar lengths, for little padding."""
    examples: list[Example] = []
    while len(examples) < _BATCHES_AT_ONCE * settings.batch_size:
        chain = draw_chain(rng, rng.randint(1, longest))
        if chain.statement not in excluded:
            examples.append(_example(tokenizer, chain, rng, settings.sloppiness))
    examples.sort(key=lambda e: len(e.ids))
    batches = [examples[i : i + settings.batch_size] for i in range(0, len(examples), settings.batch_size)]
    rng.shuffle(batches)
    return batches


def _example(tokenizer: PreTrainedTokenizerBase, chain: Chain, rng: random.Random, sloppiness: Sloppiness) -> Example:
    prompt = encode_prompt(chain.statement, tokenizer).tolist()
    answer = tokenizer(sloppy_answer(chain, rng, sloppiness), add_special_tokens=False)["input_ids"]
    return Example([*prompt, *answer, tokenizer.eos_token_id], len(prompt))


def _padded(batch: list[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [N, T] and labels [N, T], padded on the right. Labels of prompt and padding are `_IGNORED`."""
    longest = max(len(e.ids) for e in batch)
    ids = torch.full((len(batch), longest), pad_id, dtype=torch.long)
    labels = torch.full((len(batch), longest), _IGNORED, dtype=torch.long)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        labels[row, example.prompt_length : len(example.ids)] = torch.tensor(example.ids[example.prompt_length :])
    return ids, labels
