"""Estimates the bytes that a learner rank and a sampler need, from the model's shape and the recipe.

The estimate is a sum of named parts. Each part is what the code keeps at the worst moment, in the middle of a backward
pass. `SLACK` covers what no formula knows (context, communication buffers, fragmentation). No part was measured on a
GPU: a plan that leaves a few GB free is a starting point, and the metric `memory_peak_bytes` of the first step is the
truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepcoder_contracts.model_shape import ModelShape, kv_bytes_per_token, parameters, root_matrices
from deepcoder_contracts.recipe import Precision, Recipe

GB = 1e9
MEMORY_SHARE = 0.9
"""Share of a GPU's memory that an engine takes if it has the GPU to itself."""
COLOCATED_SHARE = 0.8
"""Share of a GPU's memory that a colocated engine takes in its turn. The parked learner keeps its context and what NCCL
and the allocator hold."""
SLACK = 5 * GB
"""Device memory reserved for everything that is not counted."""
MINIMUM_TOKENS = 8192
"""Smallest default token budget of a micro-batch."""
HEAD_ROWS, HEAD_BLOCK = 4096, 16_384
"""Tile of the fused head: positions by a part of the vocabulary."""
SLEEPING = 3 * GB
"""Device memory that a sleeping engine keeps: its context and captured graphs."""
SHARD_BYTES = 2 << 30
"""Approximate size of one weight file of an export."""
COMPARED_TOKENS = 512
"""Largest number of tokens on which an export's logits are compared with its checkpoint's."""


@dataclass(frozen=True)
class LearnerMemory:
    """Bytes of one rank, by purpose."""

    state: float
    """Weights, gradients and AdamW's moments in float32, and the reference model of a KL penalty: sharded."""

    kept: float
    """What each layer keeps for the backward pass: its input and its attention's output."""

    layer: float
    """One layer's recomputed activations."""

    gathered: float
    """Whole weights: two layers, embedding and head."""

    gradients: float
    """Whole gradients on their way to their shards: a layer's and the head's."""

    head: float
    """Tiles of the fused head."""

    root: float
    """At the end of the backward pass, instead of the last five: embedding and head, their gradients and the sum."""

    host: float
    """Pinned host memory: offloaded activations, and the parked learner state."""

    push: float = 0.0
    """With a sampler on the same device: everything in memory during a weight transfer, instead of the above."""

    beside: float = 0.0
    """What the colocated sampler keeps while it sleeps."""

    @property
    def total(self) -> float:
        """Device memory at the worst moment."""
        backward = self.kept + self.layer + self.gathered + self.gradients + self.head
        return max(self.state + max(backward, self.root), self.push) + self.beside + SLACK


@dataclass(frozen=True)
class ExportMemory:
    """Host memory in bytes that the first learner rank needs when a stage ends, by purpose."""

    writing: float
    """A weight file twice: its tensors and their serialized bytes."""

    comparing: float
    """A decoder layer in float32, the same again for the next layer from storage, twice while it arrives, and the
    logits of one model."""

    @property
    def most(self) -> float:
        """The larger of the two, which do not overlap in time."""
        return max(self.writing, self.comparing)


def export_memory(shape: ModelShape, recipe: Recipe) -> ExportMemory:
    """Estimate the memory that the export at the end of a Train stage needs to be written and compared with its
    checkpoint."""
    width = element_bytes(recipe)
    # A file has at least one tensor, and no more bytes than the model.
    file = min(max(SHARD_BYTES, width * shape.head_matrix), width * parameters(shape))
    return ExportMemory(
        writing=2.0 * file,
        comparing=4.0 * (3 * shape.layer_matrices + COMPARED_TOKENS * shape.vocabulary),
    )


def tokens_on_device(recipe: Recipe, context_tokens: int) -> int:
    """Return the token budget of a micro-batch on one device: the recipe's, or enough for its share of the longest
    sequence."""
    longest = recipe.max_prompt_tokens + context_tokens
    return recipe.tokens_per_device or max(MINIMUM_TOKENS, -(-longest // recipe.sequence_parallel))


def element_bytes(recipe: Recipe) -> int:
    """Return the size, in bytes, of a number in the forward and backward pass."""
    return 4 if recipe.precision is Precision.FLOAT32 else 2


def learner_memory(
    shape: ModelShape, recipe: Recipe, ranks: int, context_tokens: int, *, colocated: bool = False
) -> LearnerMemory:
    """Estimate the memory of one of `ranks` learners for micro-batches of the longest sequence.

    `colocated` says whether a sampler shares the learner's device.
    """
    tokens, width = tokens_on_device(recipe, context_tokens), element_bytes(recipe)
    queries = shape.heads * shape.head_dim
    projections = queries + 2 * shape.kv_heads * shape.head_dim
    kept = float(tokens * width * (shape.hidden + queries))
    # Gate, up and their products; projections before and after rotation; inputs of norms and blocks, norms in float32.
    numbers = 4 * shape.intermediate + 2 * projections + 4 * shape.hidden
    root = root_matrices(shape)
    offload = recipe.activation_offload
    # Weights and moments, without a step's gradients. Whole weights count twice: the learner's buffer and the engine's.
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
    """Return how many sequences of the longest length have room for their keys and values in one engine at once.

    `memory` is the memory of one GPU in bytes, and `share` the part of it that an engine takes.
    """
    devices = recipe.tensor_parallel
    free = devices * (share * memory - SLACK) - element_bytes(recipe) * parameters(shape)
    each = kv_bytes_per_token(config, recipe.precision.dtype) * (recipe.max_prompt_tokens + context_tokens)
    return max(0, int(free // each))


def checkpoint_bytes(shape: ModelShape) -> float:
    """Estimate the size of a checkpoint: weights and AdamW's moments in float32. Ranks copy them to host memory before
    writing."""
    return 12.0 * parameters(shape)
