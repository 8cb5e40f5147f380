"""Values of the simulated cluster: a checkpoint, a status on its way through the API server, and a second ledger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from deepcoder_contracts.api.run_status import CheckpointStatus, RunStatus
from deepcoder_contracts.base import Digest, sha256_digest
from deepcoder_operator.domain.world import PodView


def checkpoint(
    stage: str, step: int, ordinal: int, *, final: bool = False, at: datetime, parent: Digest | None = None
) -> CheckpointStatus:
    """A verified checkpoint."""
    uri = f"s3://deepcoder/ml/demo-01234567/{stage}/step-{step:06d}.a{ordinal:03d}"
    return CheckpointStatus(
        uri=uri, digest=sha256_digest(uri.encode()), stage=stage, step=step, ordinal=ordinal, final=final,
        parent_digest=parent, committed_time=at,
    )  # fmt: skip


@dataclass
class Meter:
    """What the pods' GPUs were used for, told from the pods alone: the planner's ledger has to agree."""

    running: dict[str, PodView] = field(default_factory=dict)
    seconds: float = 0.0

    def read(self, pods: Iterable[PodView], now: datetime) -> None:
        """A look at the pods; what is no longer there has ended by now."""
        seen = {p.name: p for p in pods if p.gpus and p.scheduled}
        for name, pod in list(self.running.items()):
            if name not in seen or seen[name].finished:
                self.seconds += _used(pod, seen[name].finished or now if name in seen else now)
                del self.running[name]
        self.running |= {name: p for name, p in seen.items() if not p.finished}


def _used(pod: PodView, until: datetime) -> float:
    assert pod.scheduled is not None
    return pod.gpus * max((until - pod.scheduled).total_seconds(), 0.0)


def roundtrip(status: RunStatus) -> RunStatus:
    """A status as it comes back from the API server."""
    return RunStatus.model_validate(status.to_wire())
