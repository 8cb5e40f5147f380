"""What the benchmark of checkpoints trains and saves: a model, steps on random tokens, and the batch that waits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import StageConfig, Storage
from deepcoder_trainer.grpo.pack import OptimizerStep, TrainingSequence, plan_step
from deepcoder_trainer.types import Finish, Generation, Group, Outcome, Sample, VersionSpan


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    model: dict[str, int]
    tokens: int
    """In a step."""
    length: int
    """Of a sequence, of which an eighth is its prompt."""
    capacity: int
    """Tokens of a micro-batch."""
    steps: int
    """Alone, and as many with a save each."""
    uploads: int
    """Times that the files of one save are uploaded, ours and plainly in turns."""


FULL: Final = Sizes(
    model={
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 704,
        "vocab_size": 4096,
    },
    tokens=16_384,
    length=512,
    capacity=2048,
    steps=5,
    uploads=7,
)
TINY: Final = Sizes(
    model={
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 128,
    },
    tokens=512,
    length=64,
    capacity=256,
    steps=2,
    uploads=1,
)


def write_model(directory: Path, sizes: Sizes) -> int:
    """A model of random weights; its number of parameters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        Qwen2Config(**sizes.model, tie_word_embeddings=True, max_position_embeddings=sizes.length)
    )
    model.save_pretrained(directory)
    return int(sum(p.numel() for p in model.parameters()))


def make_step(sizes: Sizes) -> list[OptimizerStep]:
    """One optimizer step on random sequences."""
    rng, prompt = np.random.default_rng(0), sizes.length // 8
    vocabulary = sizes.model["vocab_size"]
    sequences = [
        TrainingSequence(
            input_ids=rng.integers(0, vocabulary, sizes.length - 1).astype(np.int32),
            prompt_tokens=prompt,
            targets=rng.integers(0, vocabulary, sizes.length - prompt).astype(np.int32),
            behaviour=np.full(sizes.length - prompt, -9.0, np.float32),
            advantage=float(rng.normal()),
            mask=np.ones(sizes.length - prompt, bool),
        )
        for _ in range(sizes.tokens // sizes.length)
    ]
    [step] = plan_step(sequences, sizes.capacity, 1)
    return [step]


def finished_batch(sizes: Sizes) -> tuple[Group, ...]:
    """What the next step trains on: groups of 8 full-length samples."""
    rng, prompt = np.random.default_rng(1), sizes.length // 8
    vocabulary, length = sizes.model["vocab_size"], sizes.length - prompt

    def sample(group: int, index: int) -> Sample:
        return Sample(
            group_id=group,
            index=index,
            prompt_ids=rng.integers(0, vocabulary, prompt).astype(np.int32),
            generation=Generation(
                output_ids=rng.integers(0, vocabulary, length).astype(np.int32),
                logprobs=(-rng.gamma(2.0, 2.0, length)).astype(np.float32),
                finish=Finish.STOP,
                text="word " * length,
                versions=(VersionSpan(0, 0, length),),
            ),
            outcome=Outcome(float(rng.integers(2)), "passed", 0.25),
            limit=length,
        )

    groups = sizes.tokens // sizes.length // 8 or 1
    return tuple(Group(g, f"problem-{g}", 0, tuple(sample(g, i) for i in range(8))) for g in range(groups))


def stage_config(storage: Storage, recipe: Recipe, sizes: Sizes) -> StageConfig:
    """What the writer needs to know."""
    digest = "sha256:" + "0" * 64
    return StageConfig(
        run={"namespace": "local", "name": "bench", "uid": "00000000-0000-0000-0000-000000000000"},
        stage={"name": "bench", "index": 0, "type": "Train", "context_tokens": sizes.length, "max_steps": sizes.steps},
        longest_context_tokens=sizes.length,
        ordinal=1,
        model={"uri": "/model"},
        dataset={"uri": "/problems.jsonl"},
        recipe=recipe,
        storage=storage,
        provenance={"config_digest": digest},
    )
