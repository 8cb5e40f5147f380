"""Derives an engine's settings from the stage config and the model's config.json, without vLLM, so that it is testable.

There are two concerns. First, every sequence must have room for the longest prompt and response, and on CPUs every
prefill must fit into one scheduler step, because there a seeded request with a split prefill kills the engine. Second,
KV memory is sized for the sequences that can run at once: with too little, vLLM preempts, which costs a second prefill;
too much is taken from the learner on the same machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepcoder_contracts.learner_memory import COLOCATED_SHARE, MEMORY_SHARE
from deepcoder_contracts.model_shape import kv_bytes_per_token
from deepcoder_contracts.recipe import Order
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.modelconfig import rope_entries

GIB = 1 << 30
CPU_SEQUENCES = 512
"""Sequences that a CPU engine runs at once. Most of a small model's step time does not depend on their number: 384 at
once take 30 % less CPU time per token than 128."""
CPU_PREFILL_TOKENS = 4096
GPU_SEQUENCES = 1024
"""Upper bound of a GPU engine, as in the published recipe; in practice KV memory limits it."""
CPU_KV_BYTES = 2 * GIB
"""Largest KV memory of a CPU engine."""
PREFILL_TOKENS = 32_000
"""Token budget of a scheduler step on GPUs, as in the published recipe."""


@dataclass(frozen=True)
class EngineSettings:
    """Settings of an engine that are fixed at its start."""

    dtype: str
    """`bfloat16` or `float32`."""
    max_model_len: int
    """Largest number of tokens of prompt and response together."""
    max_num_seqs: int
    """Sequences that run at once; the rest wait."""
    max_num_batched_tokens: int
    """Tokens in one scheduler step."""
    kv_cache_bytes: int | None
    """KV memory; None: vLLM takes `memory_share` of the device."""
    tensor_parallel: int = 1
    accelerators: bool = False
    seed: int = 0
    """Seed of the engine's own generator."""
    deterministic: bool = False
    prefix_caching: bool = False
    """Whether samples of one problem share their prompt's keys and values."""
    colocated: bool = False
    """Whether the engine takes turns with a learner on its device."""
    model_entries: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the model's config.json: scaled rotary positions."""

    @property
    def memory_share(self) -> float:
        """Share of the GPU's memory that the engine takes while it is awake."""
        return COLOCATED_SHARE if self.colocated else MEMORY_SHARE


def engine_settings(config: StageConfig, model_config: Mapping[str, Any]) -> EngineSettings:
    """Return the settings of the attempt's engines."""
    recipe = config.recipe
    dtype = recipe.precision.dtype
    evaluated = (config.stage.evaluate.context_tokens if config.stage.evaluate else None) or 0
    # A config that was written by hand may name less than the stage samples, and vLLM would cut off responses silently.
    context = max(config.longest_context_tokens, config.stage.context_tokens, evaluated)
    longest = recipe.max_prompt_tokens + context
    accelerators = config.stage.resources.accelerators
    if accelerators:
        sequences, budget, kv = GPU_SEQUENCES, max(PREFILL_TOKENS, longest), None
    else:
        # vLLM rounds up to whole blocks, so each sequence gets one block (128 tokens) more.
        per_sequence = (longest + 128) * kv_bytes_per_token(model_config, dtype)
        sequences = max(1, min(CPU_SEQUENCES, CPU_KV_BYTES // per_sequence))
        budget, kv = max(CPU_PREFILL_TOKENS, longest), max(sequences * per_sequence, 64 << 20)
    return EngineSettings(
        dtype=dtype,
        max_model_len=longest,
        max_num_seqs=sequences,
        max_num_batched_tokens=budget,
        kv_cache_bytes=kv,
        tensor_parallel=recipe.tensor_parallel,
        accelerators=accelerators,
        deterministic=recipe.deterministic,
        colocated=config.stage.colocated,
        model_entries=rope_entries(model_config, config.stage.rope),
        # In window order, updates in flight keep the KV cache, so a shared prompt would stay computed with old weights.
        prefix_caching=accelerators and recipe.order is Order.STRICT and not recipe.deterministic,
    )
