"""Builds the documents that the page receives, from the API server's and storage's data. Pure.

Pod templates, environments and Secret names are left out. A run's settings are its recipe and the lengths of its
stages, which is what people compare. For storage that cannot be read, only the kind of fault is sent, without the
server's message.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from deepcoder_client.cost import cost
from deepcoder_client.errors import StorageError, StorageFault
from deepcoder_client.run_folder import Attempt, Evaluation
from deepcoder_client.settings import SILENT_SECONDS
from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.run_status import TROUBLE, Phase
from deepcoder_contracts.chain import Link
from deepcoder_contracts.exit import ExitCode
from deepcoder_contracts.steps import StepRecord

Document = dict[str, Any]

SAMPLES_SHOWN = 500
"""Largest number of rollouts of a step in a page of the list."""


def run_row(run: DeepCoderRun) -> Document:
    """Return a row of the list of runs."""
    status, stage, progress = run.status, run.status.current_stage, run.status.progress
    return {
        "namespace": run.metadata.namespace,
        "name": run.metadata.name,
        "uid": run.metadata.uid,
        "phase": status.phase,
        "stage": stage.name if stage else None,
        "contextTokens": stage.context_tokens if stage else None,
        "step": progress.step if progress else 0,
        "display": progress.display if progress else None,
        "reward": progress.reward if progress else None,
        "gpus": status.gpus,
        "attempt": status.ordinal,
        "created": run.metadata.creation_timestamp,
        "message": _message(run),
    }


def unreadable_row(namespace: str, name: str, uid: str, phase: str, created: str | None, why: str) -> Document:
    """Return a row for a run of another release, of which this build can read only the name."""
    unknown = dict.fromkeys(("stage", "contextTokens", "display", "reward"))
    about = {"namespace": namespace, "name": name, "uid": uid, "phase": phase, "created": created, "message": why}
    return about | unknown | {"step": 0, "gpus": 0, "attempt": 0, "unreadable": True}


def run_page(run: DeepCoderRun, now: datetime, problem: str | None = None) -> Document:
    """Return everything that the run's object says at a moment, and why it may be stale."""
    status = run.status
    document = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    progress = status.progress
    return run_row(run) | {
        "problem": problem,
        "conditions": document.get("conditions", []),
        "provenance": document.get("provenance", {}),
        "usage": usage(run, now),
        "reported": _time(progress.time) if progress else None,
        "silentSeconds": _silent_seconds(run, now),
        "latestCheckpoint": document.get("latestCheckpoint"),
        "startTime": document.get("startTime"),
        "completionTime": document.get("completionTime"),
        "truncatedRatio": progress.truncated_ratio if progress else None,
        "settings": settings(run),
    }


def usage(run: DeepCoderRun, now: datetime) -> Document:
    """Return what the run has used up to a moment. The status has totals of settled attempts only; running pods are
    added here."""
    found = cost(run, now)
    return {
        "gpuSeconds": 3600 * found.gpu_hours,
        "wastedGpuSeconds": 3600 * found.wasted_gpu_hours,
        "sandboxSeconds": 3600 * found.sandbox_hours,
        "cost": found.amount,
        "estimated": found.estimated,
    }


def _silent_seconds(run: DeepCoderRun, now: datetime) -> float | None:
    """Return the age of the figures of a running run if they are old; None otherwise."""
    progress = run.status.progress
    if run.status.phase is not Phase.RUNNING or progress is None:
        return None
    seconds = (now - progress.time).total_seconds()
    return seconds if seconds >= SILENT_SECONDS else None


def settings(run: DeepCoderRun) -> Document:
    """Return the settings by which runs are compared."""
    spec = run.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    kept = (
        "name",
        "type",
        "contextTokens",
        "maxSteps",
        "placement",
        "optimizer",
        "evaluate",
        "promoteWhen",
        "rope",
        "recipe",
    )
    stages = {s["name"]: {k: s[k] for k in kept if k in s and k != "name"} for s in spec["stages"]}
    model = {k: v for k, v in spec["model"].items() if k in ("uri", "revision")}
    dataset = {k: v for k, v in spec["dataset"].items() if k in ("uri", "sha256")} if spec.get("dataset") else {}
    return {"model": model, "dataset": dataset, "recipe": spec.get("recipe", {}), "stages": stages}


_ENDS: dict[int, str] = {ExitCode.DONE: "Complete", ExitCode.DRAINED: "Stopped"}


def attempt_rows(run: DeepCoderRun, attempts: Iterable[Attempt]) -> list[Document]:
    """Return attempts by ordinal with the reason of their end; a killed attempt has no exit record."""
    live = run.status.attempt
    rows = [_attempt(run, attempt, live) for attempt in attempts]
    if live and all(row["ordinal"] != live.ordinal for row in rows):
        since = live.running_time or live.admitted_time or live.intended_time
        rows.append(_live(live, run.spec.stages[live.stage_index].name, since, 0))
    return rows


def _attempt(run: DeepCoderRun, attempt: Attempt, live: AttemptStatus | None) -> Document:
    left = attempt.exit
    began = attempt.claimed or attempt.seen
    if left is not None:
        state = _ENDS.get(left.code, "Failed")
        return _row(attempt.stage, attempt.ordinal, state, began, attempt.ended, left.reason, left.message, left.step)
    if live is not None and attempt.ordinal == live.ordinal:
        progress = run.status.progress
        return _live(live, attempt.stage, began, progress.step if progress else 0)
    if attempt.ended is not None:
        text = "it left an exit record that this dashboard cannot read: another release wrote it, or it is damaged"
        return _row(attempt.stage, attempt.ordinal, "Unknown", began, attempt.ended, None, text, 0)
    text = "it left no exit record: its head was lost or killed"
    return _row(attempt.stage, attempt.ordinal, "Lost", began, attempt.seen, None, text, 0)


def _live(live: AttemptStatus, stage: str, began: datetime | None, step: int) -> Document:
    """Return the row of the attempt that the operator follows. It may be over, with its pods not gone yet."""
    return _row(
        stage, live.ordinal, live.state, began, live.ended_time, live.reason, live.evidence or "", step
    )  # fmt: skip


def _row(
    stage: str, ordinal: int, state: str, started: datetime | None, ended: datetime | None, reason: str | None,
    message: str, step: int,
) -> Document:  # fmt: skip
    return {
        "stage": stage,
        "ordinal": ordinal,
        "state": state,
        "started": _time(started),
        "ended": _time(ended),
        "reason": reason,
        "message": message,
        "step": step,
    }


class Steps:
    """Steps as columns, with cursors by which a page asks for the steps that it does not have yet."""

    def __init__(self, steps: Sequence[StepRecord]) -> None:
        self._steps = steps
        self._cursors = list(_cursors(steps))

    def document(self, after: str = "") -> Document:
        """Return the steps after the cursor `after`, or all steps if the cursor is no longer valid."""
        held = _length(after)
        reset = held is None or held > len(self._steps) or self._cursors[held] != after
        new = self._steps if reset or held is None else self._steps[held:]
        return {
            "cursor": self._cursors[-1],
            "reset": reset,
            "stage": [s.stage for s in new],
            "step": [s.step for s in new],
            "ordinal": [s.ordinal for s in new],
            "time": [s.time for s in new],
            "metrics": _columns([s.metrics for s in new]),
            "phaseSeconds": _columns([s.phase_seconds for s in new]),
        }


def _cursors(steps: Sequence[StepRecord]) -> Iterator[str]:
    """Yield the cursor after each step: the number of steps, and a digest of them. Steps that are trained again change
    it."""
    digest = hashlib.sha256()
    yield f"0-{digest.hexdigest()[:16]}"
    for number, step in enumerate(steps, 1):
        digest.update(f"{step.stage}\0{step.step}\0{step.ordinal}\0{step.time}\n".encode())
        yield f"{number}-{digest.hexdigest()[:16]}"


def _length(text: str) -> int | None:
    head = text.partition("-")[0]
    return int(head) if head.isdecimal() and len(head) <= 15 else None


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [_finite(row.get(name)) for row in rows] for name in names}


def _finite(value: float | None) -> float | None:
    """Round to six digits, more than a screen shows; None for infinity and nan, which JSON lacks."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def sample_rows(
    rows: Sequence[Mapping[str, Any]], verdict: str = "", order: str = "group", offset: int = 0
) -> Document:
    """Return a page of the list of a step's rollouts, without their texts: from `offset` on, or else the last page."""
    verdicts: dict[str, int] = {}
    for row in rows:
        verdicts[row["verdict"]] = verdicts.get(row["verdict"], 0) + 1
    chosen = [r for r in rows if not verdict or r["verdict"] == verdict]
    chosen.sort(key=_ORDERS.get(order, _ORDERS["group"]))
    offset = min(offset, max(len(chosen) - 1, 0) // SAMPLES_SHOWN * SAMPLES_SHOWN)
    return {
        "verdicts": dict(sorted(verdicts.items(), key=lambda item: -item[1])),
        "total": len(chosen),
        "offset": offset,
        "page": SAMPLES_SHOWN,
        "rows": [
            {
                "group": r["group_id"],
                "index": r["index"],
                "draw": r.get("draw", 0),
                "problem": r["problem_id"],
                "reward": r["reward"],
                "verdict": r["verdict"],
                "tokens": r["response_tokens"],
                "dropped": bool(r.get("dropped")),
            }
            for r in chosen[offset : offset + SAMPLES_SHOWN]
        ],
    }


def _place(row: Mapping[str, Any]) -> tuple[int, int, int]:
    return row["group_id"], row.get("draw", 0), row["index"]


def _reward(row: Mapping[str, Any]) -> float:
    """Sort key: rollouts that were not judged come last in either order."""
    return math.inf if row["reward"] is None else row["reward"]


_ORDERS = {
    "group": _place,
    "reward": lambda r: (-_reward(r) if r["reward"] is not None else math.inf, _place(r)),
    "worst": lambda r: (_reward(r), _place(r)),
    "longest": lambda r: (-r["response_tokens"], _place(r)),
}


def sample_page(row: Mapping[str, Any]) -> Document:
    """Return one complete rollout."""
    return {
        "problem": row["problem_id"],
        "prompt": row["prompt"],
        "response": row["response"],
        "reward": row["reward"],
        "verdict": row["verdict"],
        "finish": row["finish"],
        "promptTokens": row["prompt_tokens"],
        "responseTokens": row["response_tokens"],
        "limitTokens": row["limit_tokens"],
        "judgeSeconds": row["judge_seconds"],
        "versions": row["versions"],
    }


def lineage_node(link: Link) -> Document:
    """Return a checkpoint of the chain."""
    manifest = link.manifest
    return {
        "digest": link.digest,
        "parent": manifest.parent.digest if manifest.parent else None,
        "stage": manifest.stage,
        "step": manifest.step,
        "ordinal": manifest.ordinal,
        "final": manifest.final,
        "committed": _time(manifest.created_at),
    }


def evaluations_document(evaluations: Iterable[Evaluation]) -> Document:
    """Return the figures with their intervals, newest last, and the stored paired comparisons."""
    rows: list[Document] = []
    comparisons: list[Document] = []
    for evaluation in evaluations:
        results = evaluation.results
        key, targets = str(results.get("key", "")), results.get("targets", {})
        named = [target.get("name") for target in results.get("inputs", {}).get("targets", ())]
        for target in sorted(targets, key=lambda name: named.index(name) if name in named else len(named)):
            rows += [_evaluation(key, target, name, figures) for name, figures in targets[target].items()]
        comparisons += results.get("comparisons", [])
    return {"evaluations": rows, "comparisons": comparisons}


def _evaluation(key: str, target: str, dataset: str, figures: Mapping[str, Any]) -> Document:
    """Return the figures of a target on a set, under the names in results.json."""
    return {
        "key": key,
        "target": target,
        "dataset": dataset,
        "passAt1": figures.get("passAt1"),
        "passAtK": figures.get("passAtK", {}),
        "rating": (figures.get("codeforces") or {}).get("rating"),
        "truncatedRatio": figures.get("truncatedRatio"),
        "responseTokensMean": figures.get("responseTokensMean"),
        "problems": figures.get("problems"),
        "unjudged": figures.get("unjudged"),
        "notes": figures.get("notes", []),
    }


_FAULTS = {
    StorageFault.UNREACHABLE: "the run's storage does not answer",
    StorageFault.UNTRUSTED: "the certificate of the run's storage is not trusted: its Secret may bring a ca.crt",
    StorageFault.REFUSED: "the run's storage refuses the credentials of the run's Secret",
    StorageFault.NO_CREDENTIALS: "the run has no Secret with credentials for its storage",
    StorageFault.NO_BUCKET: "the run's storage has no bucket of that name",
    StorageFault.TOO_LARGE: "the run's stored data is too large to show here",
    StorageFault.OTHER: "the answer of the run's storage cannot be used",
}


def storage_problem(error: StorageError) -> str:
    """Return the message for a viewer, who has no command line and may not know the Secret."""
    return f"{_FAULTS[error.fault]}; the dashboard's log says more"


def encoded(document: Document) -> bytes:
    """Encode as JSON in parts, so that other threads can run between two columns of a long run."""
    return b"".join(_pieces(document, 2))


def _pieces(value: Any, depth: int) -> Iterator[bytes]:
    if not isinstance(value, dict) or not depth:
        yield json.dumps(value, separators=(",", ":")).encode()
        return
    mark = b"{"
    for key, part in value.items():
        yield mark + json.dumps(key).encode() + b":"
        yield from _pieces(part, depth - 1)
        mark = b","
    yield b"}" if value else b"{}"


def pool_document(pool: Mapping[str, Any] | None) -> Document:
    """Return the judges of a run."""
    if pool is None:
        return {"pool": None, "why": "No SandboxPool judges for this run, or it does not exist yet."}
    spec, status = pool.get("spec") or {}, pool.get("status") or {}
    kept = ("replicas", "desiredReplicas", "readyReplicas", "slots", "busySlots", "queueDepth", "conditions")
    avoided = [{k: n[k] for k in ("name", "since", "message") if k in n} for n in status.get("avoidedNodes") or ()]
    return {
        "pool": {
            "name": pool["metadata"]["name"],
            "spec": {k: spec[k] for k in ("minReplicas", "maxReplicas") if k in spec},
            "status": {k: status[k] for k in kept if k in status} | {"avoidedNodes": avoided},
        }
    }


def _message(run: DeepCoderRun) -> str:
    """Return what a viewer should know first: why the run failed, is held, waits or is not accepted."""
    by_type = {c.type: c for c in run.status.conditions}
    for kind, status in TROUBLE.items():
        condition = by_type.get(kind)
        if condition and condition.status == status:
            return condition.message
    waits = run.status.phase not in (Phase.RUNNING, Phase.COMPLETE)
    progressing = by_type.get("Progressing")
    return progressing.message if waits and progressing else ""


def _time(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z") if moment else None
