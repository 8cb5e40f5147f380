"""When the planner looks again without an event: at the bucket, and after a pass that leaves something to do.

That nothing falls due before the next look is one of the planner's invariants (`plan_invariants`).
"""

from __future__ import annotations

from plan_world import Cluster, make_run, running

from deepcoder_contracts.api.run_status import Phase, StagePhase
from deepcoder_operator.domain.bounds import POLL_SECONDS, RECHECK_SECONDS
from deepcoder_operator.domain.world import Problem


def test_bucket_is_asked_every_few_seconds_whether_a_trainer_has_saved() -> None:
    cluster = running()
    cluster.edit(suspend=True)
    cluster.step()
    assert cluster.run.status.phase is Phase.DRAINING
    assert cluster.step().requeue_after <= POLL_SECONDS


def test_bucket_that_is_away_is_asked_again_soon_for_the_result_of_an_attempt() -> None:
    cluster = running()
    cluster.storage_problem = Problem("StorageUnreachable", "no route")
    cluster.leave(1)
    cluster.settle()
    assert cluster.step().requeue_after == RECHECK_SECONDS


def test_what_follows_at_once_waits_for_no_event() -> None:
    """What an operator writes comes back to it as an event, late if the API server has much to do."""
    cluster = Cluster(make_run(sandbox={"together": {"credentialsSecretRef": {"name": "together"}}}))
    hurry(cluster)
    cluster.start_job()
    hurry(cluster)
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    hurry(cluster)
    assert cluster.run.status.stages[0].phase is StagePhase.COMPLETE
    cluster.start_job()
    hurry(cluster)
    cluster.edit(suspend=True)
    hurry(cluster)
    cluster.write_exit(75, "Drained")
    hurry(cluster)
    assert cluster.run.status.phase is Phase.SUSPENDED
    cluster.delete()
    hurry(cluster)
    assert not cluster.run.metadata.finalizers


def hurry(cluster: Cluster) -> None:
    """Passes until nothing changes; one that leaves something to do asks for the next."""
    for _ in range(30):
        before, decided, acted = cluster.run, cluster.step(), cluster.others_act()
        if cluster.run == before and not decided.actions and not acted:
            return
        more = cluster.decide()
        if not acted and not decided.actions and (more.actions or more.status != cluster.run.status):
            assert decided.requeue_after <= POLL_SECONDS
    raise AssertionError(f"no rest: {cluster.run.status}")
