"""What the operator's own configuration decides, as a value for the planner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Price:
    """What a GPU costs on pods with a node selector."""

    per_gpu_hour: float
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Matches pods whose nodeSelector has all of these; empty matches every pod."""


@dataclass(frozen=True)
class Policy:
    """Defaults and prices."""

    trainer_image: str = ""
    """Image of runs that name none."""
    operator_version: str = ""
    """Recorded in provenance."""
    prices: tuple[Price, ...] = ()
    """First match wins; none: no cost is estimated."""
