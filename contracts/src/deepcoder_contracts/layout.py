"""The keys below a run's prefix. No other module builds them.

`<prefix>/<namespace>/<run>-<uid8>/` holds RUN.json, the evaluations, and one folder per stage. A stage's folder holds
one folder per checkpoint (`step-000120.a003`: step and ordinal), the attempts' claims, exit records and logs, exports
and samples. A stage may have any name, so every key outside the stages has a form that no stage's key can have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from deepcoder_contracts.manifest import RunIdentity

RUN = "RUN.json"
MANIFEST = "MANIFEST.json"
CLAIM = "claim.json"
EXIT = "exit.json"
METRICS = "metrics.jsonl"
DRIVER_LOG = "driver.log"
"""The trainer's output, among an attempt's logs."""
RESULTS = "results.json"
"""Results of an evaluation, in its folder."""
PIN = "pin-"
"""Prefix of the object that a run puts into a checkpoint's folder when it starts from that checkpoint."""

_EVALUATION = re.compile(r"^eval/([0-9a-f]{64})$")
_CURATION = re.compile(r"^curation/([0-9a-f]{64})$")
_CHECKPOINT = re.compile(r"^step-(\d{6,})\.a(\d{3,})$")
_SAMPLES = re.compile(r"^step-(\d{6,})\.parquet$")
_NO_NAMES = frozenset({"", ".", ".."})


class AttemptFile(NamedTuple):
    """The parts of an attempt file's key."""

    ordinal: int
    name: str
    """`claim.json`, `logs/driver.log`."""


class CheckpointName(NamedTuple):
    """The parts of a checkpoint's folder name."""

    step: int
    ordinal: int


def run_root(prefix: str, run: RunIdentity) -> str:
    """Return the key prefix of a run, without a slash at either end."""
    parts = [prefix.strip("/"), run.namespace, f"{run.name}-{run.uid[:8]}"]
    return "/".join(p for p in parts if p)


def checkpoint_dir(stage: str, step: int, ordinal: int) -> str:
    """`<stage>/step-000120.a003`."""
    return f"{stage}/step-{step:06d}.a{ordinal:03d}"


def parse_checkpoint_dir(name: str) -> CheckpointName | None:
    """Return step and ordinal from a folder's last segment, or None if it is not a checkpoint."""
    match = _CHECKPOINT.match(name.rstrip("/").rsplit("/", 1)[-1])
    return CheckpointName(int(match[1]), int(match[2])) if match else None


def is_payload(path: str) -> bool:
    """Whether a path below a manifest's folder belongs to the payload: neither the manifest nor another run's pin."""
    return path != MANIFEST and not path.startswith(PIN)


def attempts_dir(stage: str) -> str:
    """`<stage>/attempts`: one folder per attempt."""
    return f"{stage}/attempts"


def attempt_dir(stage: str, ordinal: int) -> str:
    """`<stage>/attempts/003`."""
    return f"{attempts_dir(stage)}/{ordinal:03d}"


def parse_attempt_file(stage: str, key: str) -> AttemptFile | None:
    """Return attempt and name from the key of an attempt's file, or None if it is not one."""
    match = re.fullmatch(rf"{re.escape(attempts_dir(stage))}/(\d+)/(.+)", key)
    # Nothing of ours has such a part: an archive of it would be unpacked elsewhere (`..`) or as another file (`.`, ``).
    return AttemptFile(int(match[1]), match[2]) if match and not _NO_NAMES & set(match[2].split("/")) else None


def claim_key(stage: str, ordinal: int) -> str:
    """Return the key of an attempt's claim."""
    return f"{attempt_dir(stage, ordinal)}/{CLAIM}"


def exit_key(stage: str, ordinal: int) -> str:
    """Return the key of an attempt's exit record."""
    return f"{attempt_dir(stage, ordinal)}/{EXIT}"


def log_key(stage: str, ordinal: int, name: str) -> str:
    """`<stage>/attempts/003/logs/driver.log`. The operator saves its files in the same folder."""
    return f"{attempt_dir(stage, ordinal)}/logs/{name}"


def export_dir(stage: str, step: int, ordinal: int) -> str:
    """`<stage>/export/step-000180.a003`, in Hugging Face layout. `lineage` decides which of several counts."""
    return checkpoint_dir(f"{stage}/export", step, ordinal)


def parse_export_dir(key: str) -> CheckpointName | None:
    """Return step and ordinal of a folder `<stage>/export/step-….a…`, or None if it is not one."""
    parts = key.rstrip("/").split("/")
    return parse_checkpoint_dir(parts[2]) if len(parts) == 3 and parts[1] == "export" else None


def evaluation_dir(key: str) -> str:
    """`eval/<key>`, where the key is a SHA-256. No folder of a stage named `eval` looks like this."""
    return f"eval/{key}"


def parse_evaluation_dir(name: str) -> str | None:
    """Return the key of an evaluation's folder `eval/<key>`, or None if it is not one."""
    match = _EVALUATION.match(name.rstrip("/"))
    return match[1] if match else None


def evaluation_file(paths: Iterable[str], name: str) -> str | None:
    """Return the path of an evaluation's file called `name`. In S3 two processes may run the same evaluation at once,
    so each writes to its own folder, and the manifest says which one counts."""
    return next((path for path in paths if path == name or path.partition("/")[2] == name), None)


def curation_dir(key: str) -> str:
    """`curation/<key>`, where the key is a SHA-256. No folder of a stage named `curation` looks like this."""
    return f"curation/{key}"


def parse_curation_dir(name: str) -> str | None:
    """Return the key of a curation's folder `curation/<key>`, or None if it is not one."""
    match = _CURATION.match(name.rstrip("/"))
    return match[1] if match else None


def curation_journal_dir() -> str:
    """`curation/journal`: verdicts on official solutions, shared by all curations of the run."""
    return "curation/journal"


def samples_dir(stage: str) -> str:
    """`<stage>/samples`: one file per step."""
    return f"{stage}/samples"


def samples_key(stage: str, step: int) -> str:
    """`<stage>/samples/step-000120.parquet`: every rollout of a step."""
    return f"{samples_dir(stage)}/step-{step:06d}.parquet"


def parse_samples_key(key: str) -> int | None:
    """Return the step from a file's last segment, or None if the file does not hold all rollouts of a step."""
    match = _SAMPLES.match(key.rsplit("/", 1)[-1])
    return int(match[1]) if match else None


def samples_ahead_key(stage: str, ordinal: int) -> str:
    """`<stage>/samples/ahead-a003.parquet`: draws that attempt 3 dropped for steps it had not trained yet."""
    return f"{samples_dir(stage)}/ahead-a{ordinal:03d}.parquet"


def metrics_key(stage: str, ordinal: int) -> str:
    """`<stage>/attempts/003/metrics.jsonl`: one line per step."""
    return f"{attempt_dir(stage, ordinal)}/{METRICS}"
