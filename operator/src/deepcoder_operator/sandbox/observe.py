"""A judge's pod as the API server shows it, read into the value that the planner takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from deepcoder_operator.domain.pool_names import LABEL_INDEX, LABEL_TEMPLATE_HASH
from deepcoder_operator.domain.pool_plan import JudgePod


def judge_pods(objects: Iterable[Mapping[str, Any]], pool_uid: str) -> list[JudgePod]:
    """The pods of a pool, in the order of their names.

    A pod of an earlier pool of the same name counts as on its way out: it takes a name, and nothing else.
    """
    out = [_judge_pod(obj, foreign=controller_uid(obj) != pool_uid) for obj in objects]
    return sorted(out, key=lambda p: p.name)


def controller_uid(obj: Mapping[str, Any]) -> str | None:
    """UID of the object's controller."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((str(o["uid"]) for o in owners if o.get("controller")), None)


def _judge_pod(obj: Mapping[str, Any], *, foreign: bool) -> JudgePod:
    metadata, status = obj["metadata"], obj.get("status") or {}
    labels = metadata.get("labels") or {}
    index = labels.get(LABEL_INDEX, "")
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    return JudgePod(
        name=metadata["name"],
        uid=metadata["uid"],
        index=int(index) if index.isdecimal() else -1,
        template_hash=labels.get(LABEL_TEMPLATE_HASH, ""),
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]).timestamp(),
        ready=conditions.get("Ready", {}).get("status") == "True",
        deleting=foreign or metadata.get("deletionTimestamp") is not None,
        ended=status.get("phase") in ("Failed", "Succeeded"),
        address=status.get("podIP"),
        trouble=_trouble(status, conditions),
    )


def _trouble(status: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]) -> str | None:
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return str(scheduled.get("reason") or "Unschedulable")
    statuses = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    for container in statuses:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason")
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            return str(reason)
    return str(status["reason"]) if status.get("reason") else None
