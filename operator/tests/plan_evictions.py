"""What takes the pods of a planned attempt away: an eviction of its head, and its queue."""

from __future__ import annotations

from dataclasses import replace

from plan_world import Cluster


def evict(cluster: Cluster, disruption: str = "EvictionByEvictionAPI") -> None:
    """The head's pod is deleted with its whole grace, in which its preStop hook has the trainer save."""
    name = f"{cluster.name}-head"
    cluster.pods[name] = replace(cluster.pods[name], disruption=disruption)
    cluster.end_pod(name)


def queue_takes_its_quota_back(cluster: Cluster) -> None:
    """As Kueue does: it suspends the RayJob, whose cluster KubeRay then deletes."""
    cluster.change_job(suspended=True, job_status="", deployment_status="Suspending")
