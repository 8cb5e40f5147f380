"""What an evaluation is made of, and its key: the sha256 of all its inputs.

The key names the folder of the results. The same inputs find results that are there; anything else, be it one
problem, the trainer's own code or the version of vLLM, gives another folder, so that an old result is never taken for a
new one and no result is overwritten. How outputs are compared is a matter of the problems and of the trainer's code, so
it is in there; which build of the judge compared them is not, as judges do not say.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class TargetInput:
    """A model that is measured."""

    name: str
    """`Base`, or the stage that made it."""
    digest: str
    """Of its files, of its manifest, or of what else tells its weights from all others."""


@dataclass(frozen=True)
class DatasetInput:
    """A problem set it is measured on."""

    name: str
    digest: str


@dataclass(frozen=True)
class EvaluationPlan:
    """All inputs of an evaluation."""

    targets: tuple[TargetInput, ...]
    datasets: tuple[DatasetInput, ...]
    context_tokens: int
    """Response limit in tokens."""
    samples_per_problem: int
    temperature: float
    top_p: float
    seed: int
    max_prompt_tokens: int
    precision: str
    reward: str | None
    """A reward function of the user's own; None: the judge."""
    code_digest: str
    sampler: str
    """What sampled, with its version."""
    rope: str | None = None
    """Scaling of the rotary positions, as JSON."""

    @property
    def key(self) -> str:
        """64 hexadecimal digits."""
        document = json.dumps({"version": 1, **asdict(self)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(document.encode()).hexdigest()


def samples_path(target: str, dataset: str) -> str:
    """Where a target's samples of a dataset are, below the evaluation's folder."""
    return f"samples/{target}/{dataset}.parquet"
