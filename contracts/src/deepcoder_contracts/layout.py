"""Where things are below a run's prefix. The only place that knows the keys.

`<prefix>/<namespace>/<run>-<uid8>/` holds RUN.json, a folder a stage with a folder a checkpoint
(`step-000120.a003`: step and ordinal), the attempts' claims, exits and logs, exports and samples, and the evaluations.
A stage may have any name: what is not a stage's has a form that nothing of a stage's has.
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
"""What the trainer printed, among an attempt's logs."""
RESULTS = "results.json"
"""What an evaluation came to, in its folder."""

_EVALUATION = re.compile(r"^eval/([0-9a-f]{64})$")
_CURATION = re.compile(r"^curation/([0-9a-f]{64})$")
_CHECKPOINT = re.compile(r"^step-(\d{6,})\.a(\d{3,})$")
_SAMPLES = re.compile(r"^step-(\d{6,})\.parquet$")


class AttemptFile(NamedTuple):
    """What the key of a file of an attempt's says."""

    ordinal: int
    name: str
    """`claim.json`, `logs/driver.log`."""


class CheckpointName(NamedTuple):
    """What a checkpoint's folder name says."""

    step: int
    ordinal: int


def run_root(prefix: str, run: RunIdentity) -> str:
    """Key prefix of a run, without a slash at either end."""
    parts = [prefix.strip("/"), run.namespace, f"{run.name}-{run.uid[:8]}"]
    return "/".join(p for p in parts if p)


def checkpoint_dir(stage: str, step: int, ordinal: int) -> str:
    """`<stage>/step-000120.a003`."""
    return f"{stage}/step-{step:06d}.a{ordinal:03d}"


def parse_checkpoint_dir(name: str) -> CheckpointName | None:
    """Step and ordinal of a folder's last segment, None if it is no checkpoint."""
    match = _CHECKPOINT.match(name.rstrip("/").rsplit("/", 1)[-1])
    return CheckpointName(int(match[1]), int(match[2])) if match else None


def attempts_dir(stage: str) -> str:
    """`<stage>/attempts`: a folder an attempt."""
    return f"{stage}/attempts"


def attempt_dir(stage: str, ordinal: int) -> str:
    """`<stage>/attempts/003`."""
    return f"{attempts_dir(stage)}/{ordinal:03d}"


def parse_attempt_file(stage: str, key: str) -> AttemptFile | None:
    """Whose file of a stage's attempts has this key, None if it is no such file."""
    match = re.match(rf"{re.escape(attempts_dir(stage))}/(\d+)/(.+)", key)
    return AttemptFile(int(match[1]), match[2]) if match else None


def claim_key(stage: str, ordinal: int) -> str:
    """Where an attempt's claim is."""
    return f"{attempt_dir(stage, ordinal)}/{CLAIM}"


def exit_key(stage: str, ordinal: int) -> str:
    """Where an attempt's exit record is."""
    return f"{attempt_dir(stage, ordinal)}/{EXIT}"


def log_key(stage: str, ordinal: int, name: str) -> str:
    """`<stage>/attempts/003/logs/driver.log`; beside it what the operator saves."""
    return f"{attempt_dir(stage, ordinal)}/logs/{name}"


def export_dir(stage: str, step: int, ordinal: int) -> str:
    """`<stage>/export/step-000180.a003`: Hugging Face layout. Which of several counts is `lineage`'s to say."""
    return checkpoint_dir(f"{stage}/export", step, ordinal)


def parse_export_dir(key: str) -> CheckpointName | None:
    """Step and ordinal of a folder `<stage>/export/step-….a…`, None if it is no such folder."""
    parts = key.rstrip("/").split("/")
    return parse_checkpoint_dir(parts[2]) if len(parts) == 3 and parts[1] == "export" else None


def evaluation_dir(key: str) -> str:
    """`eval/<key>`, where the key is a sha256: no folder of a stage that is named `eval` looks like one."""
    return f"eval/{key}"


def parse_evaluation_dir(name: str) -> str | None:
    """The key of an evaluation's folder `eval/<key>`, None if it is no such folder."""
    match = _EVALUATION.match(name.rstrip("/"))
    return match[1] if match else None


def evaluation_file(paths: Iterable[str], name: str) -> str | None:
    """Of an evaluation's files the one called `name`: in S3, where two processes may measure the same at once, they lie
    in a folder of their writer, and the manifest says which one counts."""
    return next((path for path in paths if path == name or path.partition("/")[2] == name), None)


def curation_dir(key: str) -> str:
    """`curation/<key>`, where the key is a sha256: no folder of a stage that is named `curation` looks like one."""
    return f"curation/{key}"


def parse_curation_dir(name: str) -> str | None:
    """The key of a curation's folder `curation/<key>`, None if it is no such folder."""
    match = _CURATION.match(name.rstrip("/"))
    return match[1] if match else None


def curation_journal_dir() -> str:
    """`curation/journal`: verdicts on official solutions, good for any curation of the run."""
    return "curation/journal"


def samples_dir(stage: str) -> str:
    """`<stage>/samples`: a file a step."""
    return f"{stage}/samples"


def samples_key(stage: str, step: int) -> str:
    """`<stage>/samples/step-000120.parquet`: every rollout of a step."""
    return f"{samples_dir(stage)}/step-{step:06d}.parquet"


def parse_samples_key(key: str) -> int | None:
    """The step of a file's last segment, None if it has not all rollouts of one."""
    match = _SAMPLES.match(key.rsplit("/", 1)[-1])
    return int(match[1]) if match else None


def samples_ahead_key(stage: str, ordinal: int) -> str:
    """`<stage>/samples/ahead-a003.parquet`: draws that attempt 3 dropped in places which it had not trained yet."""
    return f"{samples_dir(stage)}/ahead-a{ordinal:03d}.parquet"


def metrics_key(stage: str, ordinal: int) -> str:
    """`<stage>/attempts/003/metrics.jsonl`: one line a step."""
    return f"{attempt_dir(stage, ordinal)}/{METRICS}"
