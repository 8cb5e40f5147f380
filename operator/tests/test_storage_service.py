"""The storage service with real servers: one that never answers, and deletions that take long, hold up nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import refusing_s3
import s3_server
from plan_world import make_run
from waits import until

from deepcoder_operator.domain.query import StorageQuery
from deepcoder_operator.domain.resolve import storage_key
from deepcoder_operator.storage import bulkhead as bulkheads
from deepcoder_operator.storage import s3
from deepcoder_operator.storage import service as services
from deepcoder_operator.storage.s3 import Bucket, Credentials, StorageProblem
from deepcoder_operator.storage.service import StorageService

NEVER = 3600.0
"""Seconds until the operator gives an answer up, where none comes."""


@pytest.fixture
async def service() -> AsyncIterator[StorageService]:
    class Reader:
        async def read(self, *_: str) -> Credentials:
            return Credentials(s3_server.ACCESS, s3_server.SECRET, source="Secret s3")

    reader: Any = Reader()
    made = StorageService(reader, [])
    yield made
    made.close()


def run_at(endpoint: str, bucket: str) -> Any:
    return make_run(checkpoint={"s3": {"bucket": bucket, "endpoint": endpoint, "credentialsSecretRef": {"name": "s3"}}})


@pytest.mark.s3
async def test_seventy_buckets_of_a_server_that_never_answers_do_not_delay_another(
    service: StorageService, blackhole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_READ_SECONDS", NEVER)
    monkeypatch.setattr(services, "DEADLINE_SECONDS", NEVER)
    program = s3_server.program()
    if program is None:
        pytest.skip("the S3 server has not been built: run `python -m devcluster build`")
    look = StorageQuery(admission=True)
    with s3_server.running(tmp_path, program) as server:
        await service.answer(run_at(server.endpoint, s3_server.BUCKET), look)
        dead = [asyncio.create_task(service.answer(run_at(blackhole, f"dead-{i}"), look)) for i in range(70)]
        of_dead = service._bulkhead._servers
        await until(
            lambda: any(
                semaphore.inside == bulkheads.NEW_SERVER and semaphore.waiting for semaphore in of_dead.values()
            )
        )
        answer = await service.answer(run_at(server.endpoint, s3_server.BUCKET), look)
        assert answer.problem is None
        assert not any(task.done() for task in dead), "it has waited for none of them"
        for task in dead:
            task.cancel()
        await asyncio.gather(*dead, return_exceptions=True)


@pytest.mark.s3
async def test_deletions_that_take_long_leave_their_bucket_to_questions(
    service: StorageService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = s3_server.program()
    if program is None:
        pytest.skip("the S3 server has not been built: run `python -m devcluster build`")
    deleting, answered = threading.Event(), threading.Event()
    delete = Bucket.delete_page

    def slow(self: Bucket, prefix: str, after: str) -> list[str]:
        deleting.set()
        answered.wait(60)
        return delete(self, prefix, after)

    monkeypatch.setattr(Bucket, "delete_page", slow)
    with s3_server.running(tmp_path, program) as server:
        run = run_at(server.endpoint, s3_server.BUCKET)
        await service.put(run, "logs/a", b"a")
        deletions = [asyncio.create_task(service.delete_folder(run)) for _ in range(5)]
        await until(deleting.is_set)
        answer = await service.answer(run, StorageQuery(admission=True))
        assert answer.problem is None
        assert not any(task.done() for task in deletions), "it has waited for none of them"
        answered.set()
        assert sum(await asyncio.gather(*deletions)) == 1


async def test_deletion_goes_on_page_by_page_within_its_bound(
    service: StorageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {"": ["a", "b"], "b": ["c"], "c": []}
    monkeypatch.setattr(Bucket, "delete_page", lambda self, prefix, after: pages[after])
    run = run_at("http://127.0.0.1:9", "bucket")
    assert await service.delete_folder(run) == 3
    monkeypatch.setattr(services, "DELETE_SECONDS", 0.2)
    pages["c"] = ["c"]
    with pytest.raises(StorageProblem, match="the rest follows"):
        await service.delete_folder(run)


async def test_object_that_may_not_be_deleted_is_named_and_the_others_go(service: StorageService) -> None:
    """S3 answers with 200, and says in the answer which objects have stayed."""
    with refusing_s3.running() as server:
        run = run_at(server.endpoint, "bucket")
        for name in ("a", "b"):
            await service.put(run, f"logs/{name}", b"")
        server.locked = {f"{storage_key(run)}/logs/a"}
        with pytest.raises(StorageProblem, match="logs/a: no: allow it s3:DeleteObject") as refusal:
            await service.delete_folder(run)
        assert refusal.value.problem.reason == "DeletionRefused"
        assert [path.removeprefix("/bucket/") for path in server.objects] == list(server.locked)
