"""The parts of the GPU benchmark (gpu.py, which says what is measured and how): each measures and returns figures.

Apart from the command, since torch, transformers and the learner take seconds to load and a wrong argument is told at
once. What a card has no memory for raises torch's own error.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen2Config

from deepcoder_contracts.recipe import Recipe
from deepcoder_trainer.grpo.logprob import linear_logprob
from deepcoder_trainer.grpo.pack import OptimizerStep, TrainingSequence, assemble
from deepcoder_trainer.learner.rank import LearnerRank
from deepcoder_trainer.learner.rank_settings import RankSettings

PEAK: Final = 989e12
"""Dense bfloat16 FLOP a second of an H100 or H200, by its data sheet."""
WARM_UP, REPEATS = 2, 5

QWEN2_1_5B: Final = {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151_936,
}
QWEN2_14B_SLICE: Final = {
    "hidden_size": 5120,
    "num_hidden_layers": 4,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "intermediate_size": 13_824,
    "vocab_size": 152_064,
}
TOY: Final = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 512,
}


@dataclass(frozen=True)
class Sizes:
    """What is measured, whole or tiny."""

    head: tuple[int, int, int]
    """Positions, vocabulary, hidden size."""
    small: dict[str, int]
    slice: dict[str, int]
    prompt: int
    responses: tuple[int, int]
    """Tokens of a response in the first stage and in the second."""


WHOLE: Final = Sizes((32_768, 152_064, 5120), QWEN2_1_5B, QWEN2_14B_SLICE, 2048, (16_384, 32_768))
TINY: Final = Sizes((96, 512, 32), TOY, TOY, 8, (24, 56))


@dataclass(frozen=True)
class Update:
    """One model at one length."""

    seconds: float
    mfu: float
    peak_bytes: float


def measure(parts: list[str], sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """All figures; None for what was not asked for or cannot be had here."""
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        **dict.fromkeys(("head_memory_ratio", "head_time_ratio", "mfu_1_5b_16k", "mfu_1_5b_32k", "mfu_slice_14b")),
        **dict.fromkeys(("fa3", "fa3_missing", "offload_time_ratio", "offload_boundary_saved")),
    }
    if "head" in parts:
        figures |= head(sizes.head, device)
    with tempfile.TemporaryDirectory() as folder:
        figures |= updates(parts, sizes, device, Path(folder))
    return figures


def head(size: tuple[int, int, int], device: torch.device) -> dict[str, Any]:
    """The trainer's head beside one that makes all logits."""
    rows, vocabulary, width = size
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, device=device, dtype=torch.bfloat16).requires_grad_()
    weight = (0.02 * torch.randn(vocabulary, width, device=device)).bfloat16().requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,), device=device)

    def ours() -> torch.Tensor:
        return linear_logprob(hidden, weight, targets, 0.6)[0]

    def all_logits() -> torch.Tensor:
        log_p = torch.log_softmax((hidden @ weight.T).float() / 0.6, -1)
        return log_p.gather(-1, targets[:, None])

    (our_seconds, our_bytes), (seconds, bytes_) = (
        _both_passes(f, (hidden, weight), device) for f in (ours, all_logits)
    )
    return {
        "head_memory_ratio": bytes_ / our_bytes if our_bytes and bytes_ else None,
        "head_time_ratio": our_seconds / seconds,
        "head_seconds": our_seconds,
        "head_transient_bytes": our_bytes,
    }


def _both_passes(
    forward: Callable[[], torch.Tensor], inputs: tuple[torch.Tensor, ...], device: torch.device
) -> tuple[float, int | None]:
    """Median seconds, and the most bytes beyond inputs and gradients (on a card)."""
    seconds, most = [], 0
    for i in range(WARM_UP + REPEATS):
        for tensor in inputs:
            tensor.grad = None
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        started = _now(device)
        forward().sum().backward()
        if i >= WARM_UP:
            seconds.append(_now(device) - started)
        if device.type == "cuda":
            gradients = sum(t.nbytes for t in inputs)
            most = max(most, torch.cuda.max_memory_allocated(device) - before - gradients)
    return statistics.median(seconds), most or None


def updates(parts: list[str], sizes: Sizes, device: torch.device, folder: Path) -> dict[str, Any]:
    """MFU of whole updates, with each attention, and the cost of offload."""
    figures: dict[str, Any] = {}
    fa3, missing = None, None
    small = "update-1.5b" in parts and write_model(sizes.small, folder / "small", device)
    large = ("slice-14b" in parts or "offload" in parts) and write_model(sizes.slice, folder / "slice", device)

    def mfus() -> dict[str, float]:
        found = {}
        if small:
            for name, response in zip(("mfu_1_5b_16k", "mfu_1_5b_32k"), sizes.responses, strict=True):
                found[name] = update(small, sizes, response, device).mfu
        if large and "slice-14b" in parts:
            found["mfu_slice_14b"] = update(large, sizes, sizes.responses[1], device).mfu
        return found

    figures |= mfus()
    if large and "offload" in parts:
        kept = update(large, sizes, sizes.responses[1], device)
        away = update(large, sizes, sizes.responses[1], device, offload=True)
        # A layer's input and its attention's output.
        boundary = 2 * sizes.slice["num_hidden_layers"] * (sizes.prompt + sizes.responses[1] - 1) * 2
        boundary *= sizes.slice["hidden_size"]
        figures["offload_time_ratio"] = away.seconds / kept.seconds
        figures["offload_boundary_saved"] = (kept.peak_bytes - away.peak_bytes) / boundary
    if small or "slice-14b" in parts:
        try:
            torch.nn.attention.activate_flash_attention_impl("FA3")
        except Exception as e:  # whatever its package, or the lack of it, raises
            missing = f"{type(e).__name__}: {e}".splitlines()[0]
        else:
            fa3 = mfus()
            torch.nn.attention.restore_flash_attention_impl()
    return figures | {"fa3": fa3, "fa3_missing": missing}


def update(directory: Path, sizes: Sizes, response: int, device: torch.device, *, offload: bool = False) -> Update:
    """An update of two micro-batches of one sequence each."""
    recipe = Recipe(max_prompt_tokens=sizes.prompt, activation_offload=offload)
    settings = RankSettings(str(directory), recipe, 0, device.type == "cuda", None, 600.0)
    rank = LearnerRank(settings, 0, 1)
    try:
        rng = np.random.default_rng(0)
        vocabulary = int(rank.policy.config.vocab_size)
        sequences = [_sequence(rng, vocabulary, sizes.prompt, response) for _ in range(2)]
        step = OptimizerStep(tuple(assemble([s]) for s in sequences), 2 * response)
        answers = [rank.train([step]) for _ in range(WARM_UP + REPEATS)][WARM_UP:]
    finally:
        rank.close()
        del rank
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    seconds = statistics.median(a["update_seconds"][0] for a in answers)
    return Update(
        seconds, answers[0]["model_flops"][0] / seconds / PEAK, max(a["memory_peak_bytes"][0] for a in answers)
    )


def _sequence(rng: np.random.Generator, vocabulary: int, prompt: int, response: int) -> TrainingSequence:
    return TrainingSequence(
        input_ids=rng.integers(0, vocabulary, prompt + response - 1).astype(np.int32),
        prompt_tokens=prompt,
        targets=rng.integers(0, vocabulary, response).astype(np.int32),
        behaviour=np.full(response, -np.log(vocabulary), np.float32),
        advantage=1.0,
        mask=np.ones(response, np.bool_),
    )


def write_model(shape: dict[str, int], directory: Path, device: torch.device) -> Path:
    """A model of random weights in Hugging Face layout."""
    config = Qwen2Config(
        **shape, max_position_embeddings=131_072, tie_word_embeddings=False, architectures=["Qwen2ForCausalLM"]
    )
    config.save_pretrained(directory)
    with torch.device("meta"):
        names = AutoModelForCausalLM.from_config(config).state_dict()
    torch.manual_seed(0)
    weights = {
        name: (
            torch.ones(meta.shape, dtype=torch.bfloat16)
            if "norm" in name
            else (0.02 * torch.randn(meta.shape, device=device)).bfloat16().cpu()
        )
        for name, meta in names.items()
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
