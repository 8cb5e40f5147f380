"""What an evaluation is made of, and its key: the sha256 of all its inputs.

The key names the folder of the results. The same inputs find results that are there; anything else, be it one
problem, the code of a reward, the trainer's own or a version of what it stands on, gives another folder, so that an old
result is never taken for a new one and no result is overwritten. What a judge says of its own code, asked when the
evaluation begins, is in there; a pool that is upgraded in its course is not seen. Which model of GPU computed is not in
there, so that an attempt on another node goes on with the samples that are there; the manifest has it. `repeat` alone
tells measurements of the same inputs apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FROM_FILES = "responses"
"""In the place of a sampler: somebody else's sampled, and it is not known how."""


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
    """Of its files."""
    prompts: str = ""
    """Digest of all that the model is sent, as text and as token ids: instructions, chat template, what is left out."""
    scoring: str = ""
    """How outputs are compared, and which part of a response is taken for the program."""
    window: str = ""
    """Days that problems are from."""
    contests: str = ""
    """Digest of standings and ratings."""


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
    """Of the trainer and the contracts."""
    sampler: str
    """What sampled, with its version."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages that sampled or compared, and Python, to their versions."""
    device: str = ""
    """`CPU` or `GPU`."""
    tensor_parallel: int = 1
    """Devices that a sampler's model was split over: sums come in another order."""
    reward_source: str | None = None
    """Digest of the source of `reward`."""
    judge: str | None = None
    """What judges say of their code; None where no judge is asked."""
    rope: str | None = None
    """Scaling of the rotary positions, as JSON."""
    repeat: int = 0
    """How often the same was measured before."""

    @property
    def key(self) -> str:
        """64 hexadecimal digits."""
        document = json.dumps({"version": 3, **self.inputs()}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(document.encode()).hexdigest()

    def inputs(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return asdict(self) | {"versions": dict(self.versions)}


def samples_path(target: str, dataset: str) -> str:
    """Where a target's samples of a dataset are, below the evaluation's folder."""
    return f"samples/{target}/{dataset}.parquet"


def parts_path(target: str | None = None, dataset: str | None = None) -> str:
    """Where samples are kept while an evaluation is under way, below its folder: all, or a target's of a dataset."""
    return "/".join(p for p in ("parts", target, dataset) if p)
