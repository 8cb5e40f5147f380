"""A pool's judges: their template, state and load, and how they are created and deleted.

The cached view may be old, so callers look `live` before they create or delete a judge. If a pod with a judge's name
belongs to something else or lacks its labels, or the API server refuses a pod, the answer is a `Refusal` for people.
Other errors raise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from deepcoder_contracts.api.sandboxpool import SandboxPoolSpec
from deepcoder_operator.builders.pool import PoolIdentity, PoolSettings, build_pod, build_pod_template
from deepcoder_operator.domain.owners import owned_by
from deepcoder_operator.domain.pool_names import LABEL_INDEX, LABEL_POOL, LABEL_TEMPLATE_HASH, selector
from deepcoder_operator.domain.pool_nodes import Avoidance
from deepcoder_operator.domain.pool_plan import Deletion, JudgePod
from deepcoder_operator.domain.pool_status import POD_INVALID, Refusal
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.cache_transform import trim_for_cache
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.resources import PODS
from deepcoder_operator.sandbox.capacity import CapacityPoller
from deepcoder_operator.sandbox.observe import judge_pods

REFUSALS = (errors.Forbidden, errors.Invalid, errors.WebhookAway)
"""Errors that need somebody's attention. The status reports them."""

_IDENTIFYING = (LABEL_POOL, LABEL_INDEX, LABEL_TEMPLATE_HASH)
"""Labels by which a pod is found and known as a judge. Without one of them, its name would be tried again forever."""


class Judges:
    """The judges of all pools. Close when done."""

    def __init__(self, kube: Kube, pods: Informer, settings: PoolSettings, poller: CapacityPoller) -> None:
        """`pods` is indexed by "namespace/pool"."""
        self._kube, self._pods, self._settings, self._poller = kube, pods, settings, poller
        self._known: dict[str, set[str]] = {}

    async def close(self) -> None:
        """Close all connections."""
        await self._poller.close()

    def forget(self, pool_uid: str) -> None:
        """Forget a deleted pool."""
        self._poller.forget(self._known.pop(pool_uid, ()))

    def template(self, pool: PoolIdentity, spec: SandboxPoolSpec) -> dict[str, Any]:
        """Build the pod template of a judge. Raises `TemplateError`."""
        return build_pod_template(pool, spec, self._settings)

    async def look(self, pool: PoolIdentity, token: str | None, *, live: bool = False) -> list[JudgePod]:
        """Return the pool's judges, with the load of ready ones, from the cache or live from the API server."""
        if live:
            # a pod's environment may have a megabyte: whole pods of a large pool would not fit into memory
            keep = partial(trim_for_cache, PODS)
            objects, _ = await self._kube.list(PODS, pool.namespace, selector(pool.name), keep=keep)
            for obj in objects:
                self._pods.observe(obj)
        else:
            objects = self._pods.group(f"{pool.namespace}/{pool.name}")
        pods = judge_pods(objects, pool.uid)
        uids = {p.uid for p in pods}
        self._poller.forget(self._known.get(pool.uid, set()) - uids)
        self._known[pool.uid] = uids
        loads = await self._poller.poll(pool.uid, pods, token) if token else {}
        return [replace(p, load=loads.get(p.uid)) for p in pods]

    async def create(
        self, pool: PoolIdentity, template: Mapping[str, Any], index: int, avoidance: Avoidance
    ) -> bool | Refusal:
        """Create a judge that avoids some nodes. Returns why it could not be created, or whether it was created now."""
        pod = build_pod(pool, template, index, avoidance)
        try:
            self._pods.observe(await self._kube.create(pod))
        except errors.AlreadyExists:
            existing = await self._kube.find(PODS, pool.namespace, pod["metadata"]["name"])
            return _why_not_ours(pool, pod, existing) or False
        except errors.Invalid as e:
            return Refusal(POD_INVALID, f"the API server refuses the judges' pods as invalid: fix spec.template: {e}")
        except REFUSALS as e:
            text = f"the API server refuses the judges' pods; the operator retries at least every minute: {e}"
            return Refusal("PodRefused", text)
        return True

    async def delete(self, pool: PoolIdentity, deletion: Deletion) -> bool:
        """Delete a judge. Returns False if it was gone already."""
        return await self._kube.delete(PODS, pool.namespace, deletion.name, uid=deletion.uid)


def _why_not_ours(pool: PoolIdentity, wanted: Mapping[str, Any], existing: Mapping[str, Any] | None) -> Refusal | None:
    """Return why a pod that has a judge's name is not that judge. None if it is, or if the name is free (again soon).

    Somebody may have removed its labels to isolate it. The pool then no longer sees it, or not as the judge that it is.
    """
    if existing is None:
        return None
    name = wanted["metadata"]["name"]
    if not owned_by(existing, pool.uid):
        return Refusal("NameConflict", f"Pod {name} exists and does not belong to this pool: delete it")
    labels, has = wanted["metadata"]["labels"], existing["metadata"].get("labels") or {}
    lost = [f"{key}={labels[key]}" for key in _IDENTIFYING if has.get(key) != labels[key]]
    if not lost or existing["metadata"].get("deletionTimestamp") is not None:
        return None
    them = f"label {lost[0]}" if len(lost) == 1 else f"labels {', '.join(lost)}"
    text = f"Pod {name} belongs to this pool but was taken out of it: put the {them} back, or delete the pod"
    return Refusal("NameConflict", text)
