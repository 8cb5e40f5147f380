"""A checkpoint that storage had, and has no more, is told with its place; what it was made from stands."""

from __future__ import annotations

from plan_world import running


def test_checkpoint_that_is_gone_or_damaged_is_told_and_the_newest_whole_one_stands() -> None:
    cluster = running()
    cluster.save(10)
    cluster.leave(1)
    cluster.settle()
    whole, stored = cluster.run.status.latest_checkpoint, dict(cluster.stored)
    cluster.advance(11)
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    cluster.save(15)
    cluster.leave(1)
    cluster.settle()
    lost = cluster.run.status.latest_checkpoint
    assert whole is not None
    assert lost is not None
    cluster.stored = stored
    cluster.advance(60)
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    cluster.leave(1)
    cluster.settle()
    told = [e.message for e in cluster.events if e.reason == "CheckpointLost"]
    assert told == [f"{lost.uri} is lost or damaged; the newest one is now {whole.uri}"]
    assert cluster.run.status.latest_checkpoint == whole


def test_checkpoint_whose_parent_nobody_saw_follows_the_one_before_it() -> None:
    """Storage is not asked for each: what lies between is whole, and nothing is lost."""
    cluster = running()
    cluster.save(5)
    cluster.leave(1)
    cluster.settle()
    cluster.advance(11)
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    cluster.save(10)
    cluster.save(15)
    cluster.leave(1)
    cluster.settle()
    assert [c.step for c in cluster.run.status.checkpoints] == [15, 5]
    assert "CheckpointLost" not in [e.reason for e in cluster.events]
