"""Reads a judge's pod from the API server into the value that the planner uses.

Fields that a kubelet has not written yet are absent, never an error. A judge's last output becomes part of a condition,
so it is shortened and tokens are removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from deepcoder_contracts.judge import EXIT_REFUSED
from deepcoder_contracts.redaction import Redactor
from deepcoder_operator.builders.pool import CONTAINER
from deepcoder_operator.domain.owners import owned_by
from deepcoder_operator.domain.pool_names import LABEL_AVOIDS, LABEL_INDEX, LABEL_TEMPLATE_HASH
from deepcoder_operator.domain.pool_plan import JudgePod

REFUSED_STARTS = 3
"""Number of times that a judge must end before it counts as refusing to start. The third end comes some ten seconds
after the first. Kubernetes keeps only the exit status of the last one."""

_MOST_TOLD = 600
_SHAPES = Redactor(())
"""A judge's output becomes part of a condition, which more people can read than logs, so tokens are removed."""
_MEMORY_FIX = (
    ": its memory limit is too small: leave resources out of spec.template, or raise the limit of the container judge"
)
_IMAGE_FIX = ": check spec.image, and imagePullSecrets in spec.template"


def judge_pods(objects: Iterable[Mapping[str, Any]], pool_uid: str) -> list[JudgePod]:
    """Return the pods of a pool, ordered by name.

    A pod of an earlier pool with the same name counts as being deleted: it only occupies a name.
    """
    out = [_judge_pod(obj, foreign=not owned_by(obj, pool_uid)) for obj in objects]
    return sorted(out, key=lambda p: p.name)


def _judge_pod(obj: Mapping[str, Any], *, foreign: bool) -> JudgePod:
    metadata, status = obj["metadata"], obj.get("status") or {}
    labels = metadata.get("labels") or {}
    index = labels.get(LABEL_INDEX, "")
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    trouble, ready = _trouble(status, conditions), conditions.get("Ready", {})
    return JudgePod(
        name=metadata["name"],
        uid=metadata["uid"],
        index=int(index) if index.isdecimal() else -1,
        template_hash=labels.get(LABEL_TEMPLATE_HASH, ""),
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]).timestamp(),
        ready=ready.get("status") == "True",
        deleting=foreign or metadata.get("deletionTimestamp") is not None,
        foreign=foreign,
        ended=status.get("phase") in ("Failed", "Succeeded"),
        address=status.get("podIP"),
        node=(obj.get("spec") or {}).get("nodeName") or "",
        avoids=labels.get(LABEL_AVOIDS, ""),
        unready_since=_time(ready.get("lastTransitionTime")) if ready.get("status") == "False" else None,
        ran_seconds=trouble.ran_seconds,
        trouble=trouble.reason,
        told=trouble.told,
        refuses=trouble.refuses,
    )


def _time(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


class _Trouble(NamedTuple):
    reason: str | None = None
    told: str = ""
    refuses: bool = False
    ran_seconds: float = 0.0


def _trouble(status: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]) -> _Trouble:
    """Return why a pod is not ready, as far as Kubernetes says."""
    if status.get("phase") == "Failed" and status.get("reason"):  # from the node; containers only say that they ended
        return _Trouble(str(status["reason"]), _brief(status.get("message")))
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return _Trouble(str(scheduled.get("reason") or "Unschedulable"), _brief(scheduled.get("message")))
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason")
        if not container.get("ready") and (ended := _failed(container)) is not None:
            own = container.get("name") == CONTAINER
            refuses = own and ended["exitCode"] == EXIT_REFUSED and _ends(container) >= REFUSED_STARTS
            refuses = refuses and not container.get("started")  # a judge that has started may be unready for a moment
            words = _last_words(ended if own else {**ended, "message": ""})
            return _Trouble("CrashLoopBackOff", words, refuses, _ran_seconds(ended))
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            told = _brief(waiting.get("message"))
            return _Trouble(str(reason), f"{told}{_IMAGE_FIX if 'Image' in reason else ''}")
    return _Trouble(str(status["reason"])) if status.get("reason") else _Trouble()


def _failed(container: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return how a repeatedly failing container last ended, even while it is being restarted."""
    for state in ("state", "lastState"):
        ended = (container.get(state) or {}).get("terminated")
        if ended and ended.get("exitCode"):
            return dict(ended)
    return None


def _ran_seconds(ended: Mapping[str, Any]) -> float:
    began, over = _time(ended.get("startedAt")), _time(ended.get("finishedAt"))
    return 0.0 if began is None or over is None else over - began


def _ends(container: Mapping[str, Any]) -> int:
    """Return how often a container has ended: once per restart, and once more if it is not running."""
    runs = "running" in (container.get("state") or {})
    return int(container.get("restartCount") or 0) + (not runs)


def _last_words(ended: Mapping[str, Any]) -> str:
    """Return a container's last output. The judge's own output says how to fix the problem."""
    if ended.get("reason") == "OOMKilled":
        return f"OOMKilled{_MEMORY_FIX}"
    lines = _SHAPES.text(str(ended.get("message") or "")).strip().splitlines()
    return f"exit code {ended['exitCode']}" + (f": {_brief(lines[-1])}" if lines else "")


def _brief(text: object) -> str:
    words = " ".join(str(text or "").split())
    return words if len(words) <= _MOST_TOLD else f"{words[:_MOST_TOLD]}…"
