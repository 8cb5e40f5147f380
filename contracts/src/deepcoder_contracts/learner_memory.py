"""Bytes that a learner rank and a sampler need, from the model's shape and the recipe: a sum of named parts.

Each part is what the code keeps at the worst moment, in the middle of a backward pass; `SLACK` stands for what no
formula knows (context, communication buffers, fragmentation). No part was measured on a GPU here: a plan that leaves
a few GB is a start, and the metric `memory_peak_bytes` of the first step has the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepcoder_contracts.model_shape import ModelShape, kv_bytes_per_token, parameters, root_matrices
from deepcoder_contracts.recipe import Precision, Recipe

GB = 1e9
MEMORY_SHARE = 0.9
"""Share of a GPU that an engine of its own takes."""
COLOCATED_SHARE = 0.8
"""Share that one takes in its turn where a learner waits on the same GPU: a parked learner keeps its context, and what
NCCL and the allocator hold."""
SLACK = 5 * GB
"""A device's share that is left to what is not counted."""
MINIMUM_TOKENS = 8192
"""Least default token budget of a micro-batch."""
HEAD_ROWS, HEAD_BLOCK = 4096, 16_384
"""Tile of the fused head: positions by a part of the vocabulary."""
SLEEPING = 3 * GB
"""What an engine that sleeps keeps of a device: its context, and graphs that it captured."""
SHARD_BYTES = 2 << 30
"""Bytes of one weight file of an export, about."""
COMPARED_TOKENS = 512
"""On which an export's logits are held to its checkpoint's, at most."""


@dataclass(frozen=True)
class LearnerMemory:
    """Bytes of one rank, by what they are for."""

    state: float
    """Weights, gradients and AdamW's moments in float32, and the reference model of a KL penalty: sharded."""

    kept: float
    """What each layer keeps for the backward pass: its input and its attention's output."""

    layer: float
    """One layer's activations, computed again."""

    gathered: float
    """Whole weights: two layers, embedding and head."""

    gradients: float
    """Whole gradients on their way to their shards: a layer's and the head's."""

    head: float
    """Tiles of the fused head."""

    root: float
    """At the end of the backward pass, instead of the last five: embedding and head, their gradients and the sum."""

    host: float
    """Pinned host memory, of offloaded activations and of what is parked."""

    push: float = 0.0
    """Where a sampler shares the device: all that is there while weights go to it, instead of all of the above."""

    beside: float = 0.0
    """What that sampler keeps while it sleeps."""

    @property
    def total(self) -> float:
        """Device memory at the worst moment."""
        backward = self.kept + self.layer + self.gathered + self.gradients + self.head
        return max(self.state + max(backward, self.root), self.push) + self.beside + SLACK


@dataclass(frozen=True)
class ExportMemory:
    """Bytes of host memory that the first learner rank takes when a stage ends, by what they are for."""

    writing: float
    """A weight file twice: its tensors, and the bytes that the library makes of them."""

    comparing: float
    """A decoder layer in float32, as much again that is on its way from storage, twice while it arrives, and the
    logits of one model."""

    @property
    def most(self) -> float:
        """One follows the other."""
        return max(self.writing, self.comparing)


def export_memory(shape: ModelShape, recipe: Recipe) -> ExportMemory:
    """What the export takes that a Train stage ends with: it is written, stored, and compared with its checkpoint."""
    width = element_bytes(recipe)
    # A file has one tensor at least, and no more than the model has.
    file = min(max(SHARD_BYTES, width * shape.head_matrix), width * parameters(shape))
    return ExportMemory(
        writing=2.0 * file,
        comparing=4.0 * (3 * shape.layer_matrices + COMPARED_TOKENS * shape.vocabulary),
    )


def tokens_on_device(recipe: Recipe, context_tokens: int) -> int:
    """Token budget of a micro-batch on one device: as set, or its share of one sequence of the longest length."""
    longest = recipe.max_prompt_tokens + context_tokens
    return recipe.tokens_per_device or max(MINIMUM_TOKENS, -(-longest // recipe.sequence_parallel))


def element_bytes(recipe: Recipe) -> int:
    """Bytes of a number in the forward and backward pass."""
    return 4 if recipe.precision is Precision.FLOAT32 else 2


def learner_memory(
    shape: ModelShape, recipe: Recipe, ranks: int, context_tokens: int, *, colocated: bool = False
) -> LearnerMemory:
    """What one of `ranks` learners needs for micro-batches of the longest sequence; `colocated`: beside a sampler."""
    tokens, width = tokens_on_device(recipe, context_tokens), element_bytes(recipe)
    queries = shape.heads * shape.head_dim
    projections = queries + 2 * shape.kv_heads * shape.head_dim
    kept = float(tokens * width * (shape.hidden + queries))
    # Gate, up and their products; projections before and after rotation; inputs of norms and blocks, norms in float32.
    numbers = 4 * shape.intermediate + 2 * projections + 4 * shape.hidden
    root = root_matrices(shape)
    offload = recipe.activation_offload
    # Weights and moments, without the gradients of a step; twice the whole weights: the learner's buffer, the engine's.
    parked = (12 + (4 if recipe.kl_coefficient else 0)) * parameters(shape) / ranks
    push = parked + width * (2 * parameters(shape) + shape.head_matrix)
    return LearnerMemory(
        state=(16 + (4 if recipe.kl_coefficient else 0)) * parameters(shape) / ranks,
        kept=kept * (2 if offload else shape.layers),
        layer=float(tokens * (width * numbers + 2 * 4 * shape.hidden)),
        gathered=float(width * (2 * shape.layer_matrices + root)),
        gradients=float((width + 4) * shape.layer_matrices + width * shape.head_matrix),
        head=float(2 * 4 * HEAD_BLOCK * shape.hidden + 4 * tokens * shape.hidden + 6 * HEAD_ROWS * HEAD_BLOCK),
        root=float((2 * width + 4) * root),
        host=(kept * shape.layers if offload else 0.0) + (parked if colocated else 0.0),
        push=push if colocated else 0.0,
        beside=SLEEPING if colocated else 0.0,
    )


def sequences_at_once(
    shape: ModelShape,
    config: Mapping[str, Any],
    recipe: Recipe,
    context_tokens: int,
    memory: float,
    *,
    share: float = MEMORY_SHARE,
) -> int:
    """Sequences of the longest length that fit one engine's keys and values at once.

    `memory` is of one GPU, and `share` what an engine takes of it.
    """
    devices = recipe.tensor_parallel
    free = devices * (share * memory - SLACK) - element_bytes(recipe) * parameters(shape)
    each = kv_bytes_per_token(config, recipe.precision.dtype) * (recipe.max_prompt_tokens + context_tokens)
    return max(0, int(free // each))


def checkpoint_bytes(shape: ModelShape) -> float:
    """One checkpoint: weights and AdamW's moments in float32, which ranks copy to host memory before they write it."""
    return 12.0 * parameters(shape)
