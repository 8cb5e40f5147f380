"""The inputs of an evaluation, and its key: the SHA-256 of all of them.

The key names the results folder. The same inputs find existing results. Any other input, even one problem, the code of
a reward, the trainer's code or the version of a dependency, gives another folder. So an old result is never taken for a
new one, and no result is overwritten. The key includes the code version that the judge reports when the evaluation
begins; a pool that is upgraded during the evaluation goes unnoticed. The GPU model is not part of the key, so that an
attempt on another node can continue with the stored samples; the manifest records it. `repeat` distinguishes
measurements of otherwise equal inputs, and `stage` the results of stages that share one measurement.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FROM_FILES = "responses"
"""Used as the sampler's name for responses from files: how they were sampled is unknown."""


@dataclass(frozen=True)
class TargetInput:
    """A model to measure."""

    name: str
    """`Base`, or the name of the stage that made it."""
    digest: str
    """Digest of its files or its manifest, or anything else that identifies its weights."""


@dataclass(frozen=True)
class DatasetInput:
    """A problem set to measure on."""

    name: str
    digest: str
    """Digest of its files."""
    prompts: str = ""
    """Digest of all prompts, as text and as token ids; covers instructions, chat template and left-out problems."""
    scoring: str = ""
    """How outputs are compared, and how the program is extracted from a response."""
    window: str = ""
    """Range of the problems' dates."""
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
    """The custom reward function; None: the judge."""
    code_digest: str
    """Digest of the trainer's and the contracts' code."""
    sampler: str
    """The sampler, with its version."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Python and the packages that sample or compare, with their versions."""
    device: str = ""
    """`CPU` or `GPU`."""
    tensor_parallel: int = 1
    """Devices over which a sampler's model is split, because this changes the order of sums."""
    reward_source: str | None = None
    """Digest of the source of `reward`."""
    judge: str | None = None
    """The judge's code version; None if no judge is used."""
    rope: str | None = None
    """Scaling of the rotary positions, as JSON."""
    repeat: int = 0
    """Number of earlier measurements with the same inputs."""
    stage: str | None = None
    """The stage whose results these are, if another stage of the run has measured the same inputs."""

    @property
    def key(self) -> str:
        """The key: 64 hexadecimal digits."""
        document = json.dumps({"version": 3, **self.inputs()}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(document.encode()).hexdigest()

    def inputs(self) -> dict[str, Any]:
        """Return all inputs as JSON values."""
        return asdict(self) | {"versions": dict(self.versions)}


def samples_path(target: str, dataset: str) -> str:
    """Return the path of a target's samples of a dataset, below the evaluation's folder."""
    return f"samples/{target}/{dataset}.parquet"


def parts_path(target: str | None = None, dataset: str | None = None) -> str:
    """Return the folder of journal parts below the evaluation's folder: of all, or of a target and dataset."""
    return "/".join(p for p in ("parts", target, dataset) if p)
