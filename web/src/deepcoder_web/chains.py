"""Walks the chains of runs' checkpoints, and remembers which links were whole.

A long run has hundreds of checkpoints, and each of their files costs a request: together more than one question may
take. So a walk ends after `LOOK_SECONDS` with the links so far, and the next one continues there. Links that were whole
are kept for an hour, by run, server and digest, and so are the files of the link in which a walk ended. Each walk asks
the bucket for something, so keys that are refused show nothing. What is not whole is read anew each time.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from deepcoder_client.run_folder import RunFolder
from deepcoder_client.storage import Bucket, Stored
from deepcoder_contracts.chain import Damaged, Link, Missing
from deepcoder_web import views

LOOK_SECONDS = 20.0
KEPT_SECONDS = 3600.0
_MOST_LINKS = 5000
_MOST_CHARACTERS = 8 << 10
"""Largest size of a kept manifest as JSON, without its files and metrics. Others are read anew."""
_MOST_FILES = 20_000

Where = tuple[str, str, str]
"""The run's UID, its server and its bucket."""


class _Enough(Exception):
    """The walk has taken its time."""


@dataclass(frozen=True)
class _Whole:
    """A link that was whole, without the list of its files."""

    link: Link
    checked: float
    """When the first of its files was looked at, in seconds since the epoch."""


class Chains:
    """The chains of all runs. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._links: OrderedDict[tuple[Where, str, str], _Whole] = OrderedDict()
        self._files: OrderedDict[tuple[Where, str], tuple[Stored, float]] = OrderedDict()

    def walk(self, folder: RunFolder) -> dict[str, Any]:
        """Return the links from the newest checkpoint on, the first problem, and whether older links are still to be
        checked."""
        s3 = folder.run.spec.checkpoint.s3
        where = (folder.run.metadata.uid, s3.endpoint or "", s3.bucket)
        nodes: list[dict[str, Any]] = []
        checked, unfinished, problem = self._clock(), False, None
        paced: Any = _Paced(folder.bucket, partial(self._file, where), self._clock)
        try:
            for link in RunFolder(paced, folder.key, folder.run).lineage(known=partial(self._known, where)):
                checked = min(checked, self._keep(where, link, paced))
                nodes.append(views.lineage_node(link))
        except _Enough:
            unfinished = True
        except (Damaged, Missing) as error:
            problem = str(error) or "an object is missing"
        since = datetime.fromtimestamp(checked, UTC).isoformat().replace("+00:00", "Z")
        return {"nodes": nodes, "problem": problem, "unfinished": unfinished, "checked": since}

    def _known(self, where: Where, uri: str, digest: str) -> Link | None:
        with self._lock:
            found = self._links.get((where, uri, digest))
            if found is None or self._clock() - found.checked > KEPT_SECONDS:
                return None
            self._links.move_to_end((where, uri, digest))
            return found.link

    def _keep(self, where: Where, link: Link, paced: _Paced) -> float:
        """Keep a link that is whole, in place of its files, and return when it was checked."""
        key, files, began = (where, link.uri, link.digest), *paced.taken()
        small = link.manifest.model_copy(update={"files": [], "metrics": {}})
        with self._lock:
            known = self._links.get(key)
            if known is not None and known.link.manifest is link.manifest:
                return known.checked
            for name in files:
                self._files.pop((where, name), None)
            if len(small.model_dump_json()) <= _MOST_CHARACTERS:
                self._links[key] = _Whole(replace(link, manifest=small), began)
                self._links.move_to_end(key)
                while len(self._links) > _MOST_LINKS:
                    self._links.popitem(last=False)
        return began

    def _file(self, where: Where, bucket: Bucket, key: str) -> tuple[Stored, float]:
        """Return an object as storage reported it, and when."""
        with self._lock:
            found = self._files.get((where, key))
        now = self._clock()
        if found is None or now - found[1] > KEPT_SECONDS:
            found = bucket.head(key), now
            with self._lock:
                self._files[where, key] = found
                while len(self._files) > _MOST_FILES:
                    self._files.popitem(last=False)
        return found


class _Paced:
    """A bucket for one walk: it answers until the walk has taken its time."""

    def __init__(
        self, bucket: Bucket, file: Callable[[Bucket, str], tuple[Stored, float]], clock: Callable[[], float]
    ) -> None:
        self.name = bucket.name
        self._bucket, self._file, self._clock = bucket, file, clock
        self._began = clock()
        self._heads: dict[str, float] = {}

    def taken(self) -> tuple[Sequence[str], float]:
        """Return the objects that were looked at since the last call, and when the first one was."""
        heads, self._heads = self._heads, {}
        return list(heads), min(heads.values(), default=self._clock())

    def get(self, key: str) -> tuple[bytes, datetime]:
        self._go_on()
        return self._bucket.get(key)

    def head(self, key: str) -> Stored:
        self._go_on()
        stored, self._heads[key] = self._file(self._bucket, key)
        return stored

    def objects(self, prefix: str) -> Sequence[Stored]:
        self._go_on()
        return self._bucket.objects(prefix)

    def _go_on(self) -> None:
        if self._clock() - self._began > LOOK_SECONDS:
            raise _Enough
