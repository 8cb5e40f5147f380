"""Rotary positions that are stretched past the length that a model was trained for: the same to sampler and learner."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from deepcoder_contracts.base import Contract


class RopeType(StrEnum):
    """How rotary positions are stretched. Yarn: by a fixed interpolation of the low frequencies. Dynamic: NTK-aware,
    by a base that grows with the length."""

    YARN = "Yarn"
    DYNAMIC = "Dynamic"


class RopeScaling(Contract):
    """Rotary positions past the length that a model was trained for."""

    type: RopeType
    """Yarn: a fixed interpolation. Dynamic: NTK-aware, by a base that grows with the length; Evaluate stages only."""

    factor: float = Field(gt=1, le=64)
    """How many times the original positions the model then reaches."""

    original_positions: int | None = Field(default=None, ge=1, le=1_048_576)
    """Positions that the model was trained for. Default: max_position_embeddings of its config.json."""
