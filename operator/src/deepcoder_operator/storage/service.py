"""Storage for the controllers: credentials, a bulkhead and deadlines around the blocking reader.

The answer to a planner's query may be a problem, which becomes a condition; the other operations raise it. Queries are
slow, above all if the server is unreachable, so a pass gives up its slot while it waits (`aside`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from typing import TypeVar

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.manifest import ParentRef
from deepcoder_contracts.stage import StageType
from deepcoder_operator import metrics
from deepcoder_operator.domain.query import StorageQuery
from deepcoder_operator.domain.resolve import identity, storage_key, storage_uri
from deepcoder_operator.domain.world import Problem, StorageView, StoredStage
from deepcoder_operator.storage.bulkhead import AT_ONCE, Bulkhead, Place
from deepcoder_operator.storage.credentials import CredentialReader
from deepcoder_operator.storage.endpoint_check import vet_address
from deepcoder_operator.storage.findings import Findings
from deepcoder_operator.storage.free_folders import FreeFolders
from deepcoder_operator.storage.reader import (
    RunFolder,
    check_folder,
    claim_folder,
    read_stage,
    resolve_origin,
)
from deepcoder_operator.storage.s3 import (
    UNREACHABLE,
    Bucket,
    Buckets,
    Credentials,
    Exists,
    Line,
    StorageProblem,
    Target,
)

DEADLINE_SECONDS = 60.0
DELETE_SECONDS = 300.0
PAGE_SECONDS = 60.0
PUT_SECONDS = 20.0

T = TypeVar("T")

metrics.begin_in_each_namespace(metrics.WAITING_FOR_STORAGE, [UNREACHABLE])


class StorageService:
    """Runs storage queries on behalf of runs."""

    def __init__(
        self,
        credentials: CredentialReader,
        allowed_endpoints: Sequence[str],
        *,
        loopback: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`allowed_endpoints` are the endpoints that runs may use; if empty, all but those on this machine's link, and
        on this machine unless `loopback` is set. Anyone who can create a run chooses the server, and must not be able
        to use the operator's position in the network."""
        self._credentials = credentials
        self._allowed = [e.rstrip("/") for e in allowed_endpoints]
        self._buckets = Buckets((lambda url: None) if self._allowed else partial(vet_address, loopback=loopback))
        self._bulkhead = Bulkhead()
        self._findings = Findings(clock)
        self._free = FreeFolders(clock)
        self.aside: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
        """Returns a context that is entered while a query waits for storage."""

    def close(self) -> None:
        """Accept no more queries."""
        self._bulkhead.close()

    async def answer(self, run: DeepCoderRun, query: StorageQuery) -> StorageView:
        """Answer a planner's query. The answer may be a problem."""
        started = time.monotonic()
        try:
            return await self._in_thread(
                run, DEADLINE_SECONDS, lambda bucket: _answer(bucket, run, query, self._findings, self._free)
            )
        except StorageProblem as e:
            metrics.STORAGE_PROBLEMS.labels(reason=e.problem.reason).inc()
            return StorageView(problem=e.problem)
        finally:
            metrics.STORAGE_SECONDS.observe(time.monotonic() - started)

    async def claim(self, run: DeepCoderRun) -> None:
        """Write RUN.json, with the digest of the accepted config, unless it exists. Raises `StorageProblem`."""
        provenance = run.status.provenance
        if provenance is None:
            raise AssertionError("a folder is claimed only after acceptance")
        digest, looked = provenance.config_digest, self._free.take(run.metadata.uid, storage_uri(run))

        def claim(bucket: Bucket) -> None:
            claim_folder(RunFolder(bucket, storage_key(run), identity(run), digest), looked=looked)

        await self._in_thread(run, DEADLINE_SECONDS, claim)

    async def delete_folder(self, run: DeepCoderRun) -> int:
        """Delete everything below the run's folder, page by page. Raises `StorageProblem`.

        Deletions may take long, so only one page per bucket is deleted at a time. Other queries do not wait for it.
        """
        folder, count, last = storage_key(run) + "/", 0, ""
        try:
            async with asyncio.timeout(DELETE_SECONDS):
                while keys := await self._delete_page(run, folder, last):
                    count, last = count + len(keys), keys[-1]
        except TimeoutError:
            raise StorageProblem(
                UNREACHABLE, f"{count} objects were deleted in {DELETE_SECONDS:.0f} s; the rest follows at the next try"
            ) from None
        return count

    async def _delete_page(self, run: DeepCoderRun, folder: str, last: str) -> list[str]:
        return await self._in_thread(run, PAGE_SECONDS, lambda bucket: bucket.delete_page(folder, last), "deletions", 1)

    async def put(self, run: DeepCoderRun, key: str, data: bytes) -> None:
        """Write a document below the run's folder, unless it exists. Raises `StorageProblem`."""

        def write(bucket: Bucket) -> None:
            with suppress(Exists):
                bucket.put_once(f"{storage_key(run)}/{key}", data)

        await self._in_thread(run, PUT_SECONDS, write)

    async def credentials(self, run: DeepCoderRun) -> Credentials:
        """Return the credentials in the run's Secret. Raises `StorageProblem`."""
        reference = run.spec.checkpoint.s3.credentials_secret_ref
        if reference is None:
            raise StorageProblem("CredentialsMissing", "checkpoint.s3.credentialsSecretRef is not set: name a Secret")
        return await self._credentials.read(run.metadata.namespace, reference.name)

    async def _in_thread(
        self, run: DeepCoderRun, seconds: float, ask: Callable[[Bucket], T], kind: str = "", at_once: int = AT_ONCE
    ) -> T:
        """Run a query in a thread. At the run's bucket, only queries of the same `kind` wait for each other."""
        s3 = run.spec.checkpoint.s3
        if s3.endpoint and self._allowed and s3.endpoint.rstrip("/") not in self._allowed:
            raise StorageProblem(
                "EndpointNotAllowed",
                f"checkpoint.s3.endpoint {s3.endpoint} is not among the operator's storage.allowedEndpoints: use "
                f"{' or '.join(self._allowed)}",
            )
        target = Target(s3.endpoint, s3.region, await self.credentials(run))

        def work(line: Line) -> T:
            return ask(self._buckets.open(target, s3.bucket, line))

        try:
            async with self.aside():
                place = Place((s3.endpoint, s3.region), (s3.bucket, kind), s3.endpoint or "AWS", at_once)
                return await self._bulkhead.ask(place, seconds, work)
        except StorageProblem as e:
            if e.problem.reason == "CredentialsRefused" and s3.credentials_secret_ref:
                self._credentials.forget(run.metadata.namespace, s3.credentials_secret_ref.name)
            raise


def _answer(
    bucket: Bucket,
    run: DeepCoderRun,
    query: StorageQuery,
    findings: Findings,
    free: FreeFolders | None = None,
) -> StorageView:
    status = run.status
    provenance = status.provenance
    origin: ParentRef | None = provenance.from_ if provenance else None
    if query.admission:
        if run.spec.from_ is not None and origin is None:
            origin = resolve_origin(bucket, run.spec.from_, findings)
        settled = provenance if status.ordinal > 0 else None
        digest = settled.config_digest if settled else None
        if not check_folder(bucket, storage_key(run), identity(run), digest) and free is not None:
            free.note(run.metadata.uid, storage_uri(run))
    stage: StoredStage | None = None
    if query.stage_index is not None:
        if provenance is None:
            return StorageView(problem=Problem("NotAccepted", "the run has not been accepted yet"))
        spec = run.spec.stages[query.stage_index]
        folder = RunFolder(bucket, storage_key(run), identity(run), provenance.config_digest)
        known = {c.digest for c in status.checkpoints}
        evaluate = spec.type is StageType.EVALUATE
        stage = read_stage(folder, spec.name, evaluate=evaluate, ordinal=query.ordinal, known=known, findings=findings)
    return StorageView(stage=stage, origin=origin)
