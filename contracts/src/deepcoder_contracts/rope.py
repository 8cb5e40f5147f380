"""Scaling of rotary positions beyond the length that a model was trained for. Sampler and learner use the same."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from deepcoder_contracts.base import Contract


class RopeType(StrEnum):
    """How rotary positions are scaled. Yarn: fixed interpolation of the low frequencies. Dynamic: NTK-aware, with a
    base that grows with the length."""

    YARN = "Yarn"
    DYNAMIC = "Dynamic"


class RopeScaling(Contract):
    """Scaling of rotary positions beyond the length that a model was trained for."""

    type: RopeType
    """Kind of scaling. Yarn: fixed interpolation. Dynamic: NTK-aware, with a base that grows with the length; allowed
    only in Evaluate stages."""

    factor: float = Field(gt=1, le=64)
    """Scaling factor: the model reaches this many times its original positions."""

    original_positions: int | None = Field(default=None, ge=1, le=1_048_576)
    """Number of positions that the model was trained for. Default: max_position_embeddings of its config.json."""
