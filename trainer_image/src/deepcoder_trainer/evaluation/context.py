"""The inputs of an evaluation: samplers, judges and problems in the same form as for training."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepcoder_contracts.fit import IN_A_RUN, Names
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.evaluation import journal
from deepcoder_trainer.rollout.reward import Reward
from deepcoder_trainer.runtime_info import RuntimeInfo
from deepcoder_trainer.sampler.pretrained import push_pretrained
from deepcoder_trainer.types import Sampler


async def no_judge() -> None:
    """Return None, which is what a judge would tell if the reward is custom and no judge grades."""


@dataclass(frozen=True)
class EvaluationContext:
    """Everything that an evaluation needs besides its plan."""

    config: StageConfig
    sampler: Sampler
    reward: Reward
    store: ObjectStore
    """The run's own storage."""
    sources: Sources
    tokenizer: Any
    """The model's Hugging Face tokenizer."""
    workdir: Path
    """Local scratch space."""
    dtype: str
    """The samplers' number format."""
    runtime_info: RuntimeInfo = field(default_factory=RuntimeInfo)
    told: Callable[[Mapping[str, float]], None] = lambda _figures: None
    """Called with each target's figures once it is measured (Evaluate stages): `eval/<set>/<target>/<figure>`."""
    judge_version: Callable[[], Awaitable[str | None]] = no_judge
    """Returns the version of the judge's code."""
    max_memory_mb: Callable[[], Awaitable[int | None]] = no_judge
    """Returns the largest memory limit that the judge accepts, in MiB."""
    again: bool = False
    """Measure again even if there are results, and keep both."""
    journal_seconds: float = journal.SECONDS
    """Seconds between two parts of the journal: a killed process loses at most this much."""
    advance: Callable[[str, int, int], None] = lambda _name, _done, _of: None
    """Called with a set's name, its finished samples and their total."""
    names: Names = IN_A_RUN
    """What messages call settings that the command `evaluate` has as options."""

    async def push(self, directory: Path, version: int) -> None:
        """Put a model in Hugging Face layout into all samplers; `version` labels its tokens."""
        await push_pretrained(self.sampler, directory, version, self.dtype)
