"""What an evaluation is given: samplers, judges and problems as training has them, so that both measure alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.evaluation import journal
from deepcoder_trainer.rollout.reward import Reward
from deepcoder_trainer.runtime_info import RuntimeInfo
from deepcoder_trainer.sampler.pretrained import push_pretrained
from deepcoder_trainer.types import Sampler


async def no_judge() -> None:
    """Where no judge grades: a reward of the user's own."""


@dataclass(frozen=True)
class EvaluationContext:
    """Everything but the plan."""

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
    """Hears what each target of an Evaluate stage came to as soon as it is measured: `eval/<set>/<target>/<figure>`."""
    judge_version: Callable[[], Awaitable[str | None]] = no_judge
    """Asks a judge which code grades."""
    again: bool = False
    """Measure once more what was measured before, beside it."""
    journal_seconds: float = journal.SECONDS
    """Time between two parts of the journal: what a process that is killed loses."""
    advance: Callable[[str, int, int], None] = lambda _name, _done, _of: None
    """Told how many of a set's samples are done, and of how many."""

    async def push(self, directory: Path, version: int) -> None:
        """Put a model in Hugging Face layout into all samplers; `version` labels its tokens."""
        await push_pretrained(self.sampler, directory, version, self.dtype)
