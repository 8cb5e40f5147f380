"""Removes the finalizer from all runs when the operator is uninstalled.

A run's finalizer waits for an operator that lets the trainer save and that deletes artifacts. Without an operator, the
finalizer would block the deletion of the run, its namespace and the CRD forever. The chart's pre-delete hook calls this
with the operator's service account while that still exists. So it takes the operator's Lease first; otherwise the
operator would add the finalizers again. Attempts continue to run, and the next operator takes over the runs as they
are. Each run that keeps its finalizer is reported, and the command fails. A namespace that we may not access is only
logged, because a deleted namespace looks the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from deepcoder_contracts.api.run import FINALIZER
from deepcoder_operator.config import OperatorConfig
from deepcoder_operator.kube import errors, lease
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import RUNS

log = logging.getLogger(__name__)

_TRIES = 5
_HOLDER = "uninstallation"
_WORK_SECONDS = 300
"""Duration, in seconds, for which the Lease is first taken: longer than releasing all runs may take."""

_AFTER_SECONDS = 30
"""Duration, in seconds, for which the Lease is kept at the end, so that the operator is deleted before it expires. An
operator that is installed again waits as long."""


async def stop_operator(kube: Kube, config: OperatorConfig) -> None:
    """Take the Lease of the operator with this configuration, which then writes nothing any more."""
    await lease.take_away(kube, config.namespace, config.lease, _HOLDER, _WORK_SECONDS)


async def let_operator_follow(kube: Kube, config: OperatorConfig) -> None:
    """Let the Lease expire soon, for an operator that is installed again or whose uninstallation was cancelled."""
    await lease.leave_to_others(kube, config.namespace, config.lease, _HOLDER, _AFTER_SECONDS)


async def release_runs(kube: Kube, namespaces: Sequence[str]) -> list[str]:
    """Remove our finalizer from every run of these namespaces, or of all if none are given. Returns the runs that kept
    it, each with the reason."""
    kept: list[str] = []
    for namespace in namespaces or (None,):
        try:
            runs, _ = await kube.list(RUNS, namespace, keep=_kept)
        except errors.NotFound:
            continue  # the kind, or the namespace, is gone already
        except errors.Forbidden:
            if namespace is None:
                kept.append("the runs of all namespaces cannot be listed: the permission is missing")
                continue
            # The namespace was probably deleted with its Role. A failure here would block the chart's uninstallation.
            log.warning("namespace %s is gone or may not be accessed: runs in it keep their finalizer", namespace)
            continue
        except errors.KubeError as e:
            kept.append(f"the runs of {namespace or 'all namespaces'} cannot be listed: {e}")
            continue
        answers = [await _release(kube, run) for run in runs]
        kept += [problem for problem in answers if problem is not None]
    return kept


def _kept(run: Object) -> Object:
    """Return what is read of a run. Two thousand whole runs would not fit into the memory of the chart's hook."""
    metadata = run["metadata"]
    return {
        "metadata": {k: metadata[k] for k in ("namespace", "name", "finalizers", "resourceVersion") if k in metadata}
    }


async def _release(kube: Kube, run: Object) -> str | None:
    namespace, name = run["metadata"]["namespace"], run["metadata"]["name"]
    for _ in range(_TRIES):
        metadata = run["metadata"]
        finalizers = metadata.get("finalizers") or []
        if FINALIZER not in finalizers:
            return None
        rest = [f for f in finalizers if f != FINALIZER]
        change = {"metadata": {"finalizers": rest, "resourceVersion": metadata["resourceVersion"]}}
        try:
            try:
                await kube.patch(RUNS, namespace, name, change)
            except errors.Conflict:
                run = await kube.get(RUNS, namespace, name)
                continue
        except errors.NotFound:
            return None
        except errors.KubeError as e:
            return f"{namespace}/{name}: {e}"
        log.info("released run %s/%s", namespace, name)
        return None
    return f"{namespace}/{name}: others changed it {_TRIES} times meanwhile"
