"""Settings of the operator that influence planning, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Price:
    """Price of a GPU in pods with a node selector."""

    per_gpu_hour: float
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Matches pods whose nodeSelector has all of these; empty matches every pod."""


@dataclass(frozen=True)
class Policy:
    """Defaults and prices."""

    trainer_image: str = ""
    """Image of runs that do not set one."""
    operator_version: str = ""
    """Recorded in provenance."""
    prices: tuple[Price, ...] = ()
    """The first matching price applies. If there are no prices, no cost is estimated."""
