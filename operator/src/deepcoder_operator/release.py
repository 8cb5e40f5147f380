"""What is left to do once the operator is gone for good: let go of the runs.

A run's finalizer waits for an operator that lets its trainer save and deletes its artifacts. Without one it would keep
the run, its namespace and the CRD from being deleted for ever. The chart's pre-delete hook calls this, with the
operator's own account while that is still there; so it takes the operator's Lease first, or the operator would hold the
runs again. Attempts that run go on meanwhile, and the next operator takes the runs over as they are. What cannot be let
go is named, and fails; a namespace that is closed to us is named alone, since one that is gone looks the same.
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
"""How long the Lease is taken for at first: longer than letting all runs go may take."""

_AFTER_SECONDS = 30
"""How long it is left for in the end: until the operator is deleted. Whoever installs it again waits for as long."""


async def stop_operator(kube: Kube, config: OperatorConfig) -> None:
    """Lead in the place of the operator of this configuration, which from now on writes nothing."""
    await lease.take_away(kube, config.namespace, config.lease, _HOLDER, _WORK_SECONDS)


async def let_operator_follow(kube: Kube, config: OperatorConfig) -> None:
    """Be out of the way soon: of an operator that is installed again, or whose uninstallation was called off."""
    await lease.leave_to_others(kube, config.namespace, config.lease, _HOLDER, _AFTER_SECONDS)


async def release_runs(kube: Kube, namespaces: Sequence[str]) -> list[str]:
    """Take our finalizer from every run of these namespaces (none: of all); returns those that kept it, and why."""
    kept: list[str] = []
    for namespace in namespaces or (None,):
        try:
            runs, _ = await kube.list(RUNS, namespace)
        except errors.NotFound:
            continue  # the kind, or the namespace, is gone already
        except errors.Forbidden:
            if namespace is None:
                kept.append("the runs of all namespaces cannot be listed: the right is missing")
                continue
            # Its Role went with it. To fail here would keep the chart from being uninstalled.
            log.warning("namespace %s is gone, or closed to us: runs in it would keep their finalizer", namespace)
            continue
        except errors.KubeError as e:
            kept.append(f"the runs of {namespace or 'all namespaces'} cannot be listed: {e}")
            continue
        answers = [await _release(kube, run) for run in runs]
        kept += [problem for problem in answers if problem is not None]
    return kept


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
            await kube.patch(RUNS, namespace, name, change)
        except errors.NotFound:
            return None
        except errors.Conflict:
            found = await kube.find(RUNS, namespace, name)
            if found is None:
                return None
            run = found
            continue
        except errors.KubeError as e:
            return f"{namespace}/{name}: {e}"
        log.info("let go of %s/%s", namespace, name)
        return None
    return f"{namespace}/{name}: changed by others {_TRIES} times meanwhile"
