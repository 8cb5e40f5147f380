"""The controller's part of a checkpoint: counters, metric history, and groups that are finished but not trained on yet.

Strict one-off pipelining has, at every step boundary, a finished batch that the next step trains on. It was sampled
with weights that are about to be replaced, so it cannot be sampled again. It is stored with rewards and verdicts, and a
resumed run trains on it first; only samples that no judge could judge are judged again. The state is stored in two
files: arrays in `pipeline.safetensors`, everything else in `state.json`. Neither can run code when read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, CheckpointFailed, NewerSchema, refuse_newer
from deepcoder_trainer.types import Finish, Generation, Group, Outcome, Sample, VersionSpan

ARRAYS = "pipeline.safetensors"
STATE = "state.json"

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PipelineState:
    """Everything, besides the learner's state, that a run needs to continue as if it had never stopped."""

    step: int
    """Steps of this stage that trained the weights."""

    total_steps: int
    """Steps of all stages that trained the weights."""

    version: int
    """Version of the weights that the samplers have."""

    next_group_id: int
    """First group that was never admitted, over all stages. With the run's seed, it determines all further problems."""

    groups: tuple[Group, ...] = ()
    """Finished groups that are not trained yet, in group_id order. Strict one-off: exactly the next batch."""

    pending: tuple[int, ...] = ()
    """Groups that were admitted but not finished. They are sampled again. In strict order there are some only after a
    stop that ran out of time or coincided with the loss of a sampler."""

    history: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Values of each metric in this stage, oldest first, for gates. `evaluated` lists the steps that were followed by
    an evaluation."""

    counters: Mapping[str, float] = field(default_factory=dict)
    """Totals over all stages: samples, quarantined, tokens."""

    trained_groups: int | None = None
    """Groups that the steps of all stages have trained. None in older checkpoints, in which all batches have the same
    size."""


def save_state(state: PipelineState, directory: Path) -> list[Path]:
    """Write both files below a directory. Return their paths. Raises `CheckpointFailed` or `OSError`."""
    directory.mkdir(parents=True, exist_ok=True)
    samples = [s for g in state.groups for s in g.samples]
    arrays = {
        "prompt_ids": _flat([s.prompt_ids for s in samples], np.int32),
        "prompt_lengths": np.array([len(s.prompt_ids) for s in samples], np.int64),
        "output_ids": _flat([s.generation.output_ids for s in samples], np.int32),
        "output_lengths": np.array([len(s.generation.output_ids) for s in samples], np.int64),
        "logprobs": _flat([s.generation.logprobs for s in samples], np.float32),
    }
    document = {
        "schemaVersion": _SCHEMA_VERSION,
        "step": state.step,
        "totalSteps": state.total_steps,
        "version": state.version,
        "nextGroupId": state.next_group_id,
        "trainedGroups": state.trained_groups,
        "pending": list(state.pending),
        "history": {k: list(v) for k, v in state.history.items()},
        "counters": dict(state.counters),
        "groups": [
            {
                "groupId": g.group_id,
                "problemId": g.problem_id,
                "admittedVersion": g.admitted_version,
                "draw": g.draw,
                "samples": [_sample_document(s) for s in g.samples],
            }
            for g in state.groups
        ],
    }
    arrays_path, state_path = directory / ARRAYS, directory / STATE
    try:
        save_file(arrays, arrays_path)
    except SafetensorError as e:  # raised also if the disk is full
        raise CheckpointFailed(f"{arrays_path} could not be written: {e}") from e
    # ASCII: a response may hold half of a surrogate pair, which comes back only from an escape.
    state_path.write_text(json.dumps(document, sort_keys=True))
    return [arrays_path, state_path]


def load_state(directory: Path) -> PipelineState:
    """Read the files of `save_state`. Raises `CheckpointDamaged` if they are unreadable or inconsistent."""
    try:
        arrays = load_file(directory / ARRAYS)
        document = json.loads((directory / STATE).read_text())
        refuse_newer(STATE, document["schemaVersion"], _SCHEMA_VERSION)
        if document["schemaVersion"] != _SCHEMA_VERSION:
            raise CheckpointDamaged(f"{STATE} has schemaVersion {document['schemaVersion']!r}, which there never was")
        return PipelineState(
            step=document["step"],
            total_steps=document["totalSteps"],
            version=document["version"],
            next_group_id=document["nextGroupId"],
            trained_groups=document.get("trainedGroups"),
            groups=_groups(document["groups"], arrays),
            pending=tuple(document.get("pending", ())),
            history={k: tuple(v) for k, v in document["history"].items()},
            counters=document["counters"],
        )
    except NewerSchema:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
        raise CheckpointDamaged(f"the pipeline state in {directory} cannot be read: {type(e).__name__}: {e}") from e


def _flat(parts: Sequence[np.ndarray[Any, Any]], dtype: type) -> np.ndarray[Any, Any]:
    return np.concatenate([np.asarray(p, dtype) for p in parts]) if parts else np.zeros(0, dtype)


def _sample_document(s: Sample) -> dict[str, Any]:
    return {
        "index": s.index,
        "limit": s.limit,
        "finish": s.generation.finish.value,
        "text": s.generation.text,
        "versions": [[v.version, v.start, v.end] for v in s.generation.versions],
        "reward": s.outcome.reward,
        "verdict": s.outcome.verdict,
        "seconds": s.outcome.seconds,
        "attempts": s.outcome.attempts,
    }


def _groups(documents: list[dict[str, Any]], arrays: dict[str, np.ndarray[Any, Any]]) -> tuple[Group, ...]:
    count = sum(len(g["samples"]) for g in documents)
    if not len(arrays["prompt_lengths"]) == len(arrays["output_lengths"]) == count:
        raise ValueError(f"{count} samples in {STATE}, {len(arrays['output_lengths'])} in {ARRAYS}")
    prompts = iter(_unflat(arrays["prompt_ids"], arrays["prompt_lengths"]))
    outputs = iter(_unflat(arrays["output_ids"], arrays["output_lengths"]))
    logprobs = iter(_unflat(arrays["logprobs"], arrays["output_lengths"]))
    return tuple(
        Group(
            group_id=g["groupId"],
            problem_id=g["problemId"],
            admitted_version=g["admittedVersion"],
            draw=g.get("draw", 0),
            samples=tuple(
                Sample(
                    group_id=g["groupId"],
                    index=s["index"],
                    prompt_ids=next(prompts),
                    generation=Generation(
                        output_ids=next(outputs),
                        logprobs=next(logprobs),
                        finish=Finish(s["finish"]),
                        text=s["text"],
                        versions=tuple(VersionSpan(*v) for v in s["versions"]),
                    ),
                    outcome=Outcome(s["reward"], s["verdict"], s["seconds"], s["attempts"]),
                    limit=s["limit"],
                )
                for s in g["samples"]
            ),
        )
        for g in documents
    )


def _unflat(flat: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    if int(lengths.sum()) != len(flat):
        raise ValueError(f"{ARRAYS} has {len(flat)} tokens where its lengths add up to {int(lengths.sum())}")
    return np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []
