"""Opens runs' folders with the run's own credentials, so that nobody can use the page's identity or network position.

Only the keys in the run's Secret are used, never those of the page's environment, account or node. A Secret is read
again every `FRESH_SECONDS`, and at once if its keys are refused: a rotated Secret is picked up, and after a deleted one
nothing can be opened. A server that the configuration does not name must not be on this machine or its link
(`127.0.0.1`, `169.254.169.254`), whatever its name resolves to at the time of the request. A name that changes right
after that has to be stopped by an egress rule.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from deepcoder_client.connection import Connection
from deepcoder_client.errors import Forbidden, NotFound, StorageError, StorageFault
from deepcoder_client.run_folder import RunFolder, folder_key
from deepcoder_client.storage import Bucket, Credentials, Limits, secret_credentials
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.run_spec import S3
from deepcoder_contracts.uris import resolves_to_local
from deepcoder_web.storage_threads import check_deadline

FRESH_SECONDS = 60.0
_KEPT = 64
_TRANSFER_SECONDS = 45.0
_DOCUMENT_BYTES, _DATA_BYTES, _OBJECTS = 8 << 20, 128 << 20, 200_000

T = TypeVar("T")


class NotAllowed(Exception):
    """A server that the page must not contact."""


@dataclass
class _Open:
    """A bucket, the keys it was opened with, and when the Secret was last read."""

    s3: S3
    access: Credentials
    bucket: Bucket
    looked: float


class RunFolders:
    """Opens run folders. Thread-safe."""

    def __init__(
        self, connection: Connection, allowed_endpoints: Sequence[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connection, self._clock = connection, clock
        self._allowed = {e.rstrip("/") for e in allowed_endpoints}
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._lock = threading.Lock()

    def ask(self, run: DeepCoderRun, question: Callable[[RunFolder], T]) -> T:
        """Run `question` on a run's folder and return its result. If the keys are refused, they are read again once."""
        folder = self._folder(run, self._clock() - FRESH_SECONDS)
        try:
            return question(folder)
        except StorageError as error:
            if error.fault is not StorageFault.REFUSED:
                raise
            again = self._folder(run, self._clock())
            if again.bucket is folder.bucket:
                raise
        return question(again)

    def _folder(self, run: DeepCoderRun, oldest: float) -> RunFolder:
        """Return the folder with keys that were read after `oldest`."""
        s3, key = run.spec.checkpoint.s3, folder_key(run)
        self._check(s3)
        with self._lock:
            held = self._open.get(run.metadata.uid)
        if held is None or held.s3 != s3 or held.looked <= oldest:
            access = self._credentials(run, s3)
            if held is None or (held.s3, held.access) != (s3, access):
                held = _Open(s3, access, Bucket(s3, access, limits=self._limits(s3)), 0.0)
            held.looked = self._clock()
        with self._lock:
            self._open[run.metadata.uid] = held
            self._open.move_to_end(run.metadata.uid)
            while len(self._open) > _KEPT:
                self._open.popitem(last=False)
        return RunFolder(held.bucket, key, run)

    def _credentials(self, run: DeepCoderRun, s3: S3) -> Credentials:
        try:
            return secret_credentials(self._connection, run.metadata.namespace, s3)
        except (NotFound, Forbidden) as error:
            with self._lock:
                self._open.pop(run.metadata.uid, None)
            raise StorageError(f"the run's Secret cannot be read: {error}", StorageFault.NO_CREDENTIALS) from error

    def _check(self, s3: S3) -> None:
        endpoint = s3.endpoint
        if endpoint and self._allowed and endpoint.rstrip("/") not in self._allowed:
            raise NotAllowed(f"checkpoint.s3.endpoint {endpoint} is not among the endpoints that the operator allows")

    def _limits(self, s3: S3) -> Limits:
        named = s3.endpoint is not None and s3.endpoint.rstrip("/") in self._allowed

        def vet(url: str) -> None:
            check_deadline()
            if not named:
                vet_address(url)

        return Limits(_DOCUMENT_BYTES, _DATA_BYTES, _OBJECTS, _TRANSFER_SECONDS, vet)


def vet_address(url: str) -> None:
    """Raise `NotAllowed` if a server is on this machine or its link."""
    if resolves_to_local(url, loopback=False):
        raise NotAllowed(
            "checkpoint.s3.endpoint is on the dashboard's own machine or link: only a server that the chart's "
            "s3.allowedEndpoints names may be there"
        )
