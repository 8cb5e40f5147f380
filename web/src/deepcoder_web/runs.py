"""All runs in memory, kept current by one watch per served namespace, and the waiters for their changes.

Watches run in their own threads and resume from what they saw last. While a watch is broken, the page shows the last
known state, and `problem` says so. A run that this build cannot read (`Unreadable`: another release wrote it, or it is
far too large) is kept by name and does not affect the others. Waiters are woken, not sent the changes: a slow one
misses only intermediate states.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from deepcoder_client.client import Client
from deepcoder_client.connection import Object
from deepcoder_client.errors import ClientError, Forbidden, Unknown
from deepcoder_client.reading import typed
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_web.kept import shown, why_unshown

log = logging.getLogger(__name__)

WATCH_SECONDS = 3600.0
PAUSE_SECONDS = 5.0
"""Seconds between a failed watch and the next."""


class RunKey(NamedTuple):
    """A run by name."""

    namespace: str
    name: str


EVERYTHING = RunKey("", "")
"""A change for all waiters: a watch broke, or works again."""


@dataclass(frozen=True)
class Unreadable:
    """The known fields of a run that this build cannot read, and why it cannot."""

    key: RunKey
    uid: str
    version: str
    phase: str
    created: str | None
    why: str


Run = DeepCoderRun | Unreadable


class Waiter:
    """Waits for changes of one run, or of any."""

    def __init__(self, key: RunKey | None) -> None:
        self.key = key
        self._event = asyncio.Event()
        self._changed: set[RunKey] = set()

    def tell(self, key: RunKey) -> None:
        """Report that a run has changed, or `EVERYTHING`."""
        if self.key is None or key in (self.key, EVERYTHING):
            self._changed.add(key)
            self._event.set()

    async def changes(self, seconds: float) -> set[RunKey]:
        """Return the changes since the last call; empty after `seconds` without a change."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return set()
        self._event.clear()
        changed, self._changed = self._changed, set()
        return changed


class Runs:
    """All runs of the served namespaces."""

    def __init__(self, client: Client, namespaces: Sequence[str]) -> None:
        """`namespaces`: empty for the whole cluster."""
        self._client, self._namespaces = client, tuple(namespaces) or (None,)
        self._runs: dict[RunKey, Run] = {}
        self._waiters: set[Waiter] = set()
        self._problems: dict[str | None, str] = dict.fromkeys(self._namespaces, "the runs have not been listed yet")
        self._unanswered, self._listed = set(self._namespaces), False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = threading.Event()

    def start(self) -> None:
        """Start watching. Call it in the event loop that receives the changes."""
        self._loop = asyncio.get_running_loop()
        for namespace in self._namespaces:
            threading.Thread(
                target=self._follow, args=(namespace,), daemon=True, name=f"watch {namespace or 'all'}"
            ).start()

    def stop(self) -> None:
        """Stop processing changes; a watch that waits for one ends with the process."""
        self._over.set()

    @property
    def problem(self) -> str | None:
        """Why some of the data may be stale, or None."""
        return next(iter(self._problems.values()), None)

    @property
    def problems(self) -> dict[str | None, str]:
        """Why some of the data may be stale, by namespace; None stands for all."""
        return dict(self._problems)

    def problem_of(self, namespace: str) -> str | None:
        """Return why a namespace's data may be stale, or None."""
        return self._problems.get(namespace) or self._problems.get(None)

    @property
    def waits(self) -> str | None:
        """Why nothing can be shown yet; None once there was a list, and an answer for each other namespace.

        A namespace whose list is forbidden counts as answered: it was deleted, with the page's Role in it.
        """
        if self._listed and not self._unanswered:
            return None
        return self.problem or "the runs have not been listed yet"

    def get(self, key: RunKey) -> Run | None:
        """Return a run."""
        return self._runs.get(key)

    def all(self) -> list[tuple[RunKey, Run]]:
        """Return all runs, sorted by namespace and name."""
        return [(key, self._runs[key]) for key in sorted(self._runs)]

    @contextmanager
    def waiting(self, key: RunKey | None) -> Iterator[Waiter]:
        """Receive changes for as long as the context lasts."""
        waiter = Waiter(key)
        self._waiters.add(waiter)
        try:
            yield waiter
        finally:
            self._waiters.discard(waiter)

    def _follow(self, namespace: str | None) -> None:
        everywhere = namespace is None
        while not self._over.is_set():
            try:
                listed = [_read(e) for e in self._client.raw_list(namespace, all_namespaces=everywhere, keep=shown)]
                self._call(partial(self._take_all, namespace, listed))
                del listed  # else it would be kept beside its later versions, for as long as the watch lasts
                for kind, run in self._client.raw_watch(
                    None, namespace, seconds=WATCH_SECONDS, all_namespaces=everywhere, patience=0.0, keep=shown
                ):
                    self._call(partial(self._take, kind, _read(run)))
            except ClientError as error:
                log.warning("runs cannot be watched: %s", error)
                self._pause(namespace, error)
            except Exception as error:  # such as an invalid answer; nothing would restart this thread
                log.exception("runs cannot be watched")
                self._pause(namespace, error)

    def _pause(self, namespace: str | None, error: Exception) -> None:
        self._call(partial(self._fail, namespace, error))
        self._over.wait(PAUSE_SECONDS)

    def _call(self, action: Callable[[], object]) -> None:
        if self._loop is None:
            raise AssertionError("watches begin with start()")
        if not self._over.is_set():
            self._loop.call_soon_threadsafe(action)

    def _fail(self, namespace: str | None, error: Exception) -> None:
        said = str(error) if isinstance(error, ClientError) else type(error).__name__
        if isinstance(error, Forbidden):  # its own message addresses the reader, who may well have the permission
            said = f"the dashboard's own account may not {error.right.verb} {error.right.qualified}"
        text, before = f"runs cannot be watched: {said}", self._problems.get(namespace)
        self._problems[namespace] = text
        if text != before:
            self._tell(EVERYTHING)
        if isinstance(error, Forbidden):
            self._unanswered.discard(namespace)

    def _take_all(self, namespace: str | None, listed: Sequence[Run]) -> None:
        """Replace the state by a list: runs missing from it were deleted while there was no watch."""
        if self._problems.pop(namespace, None):
            self._tell(EVERYTHING)
        self._unanswered.discard(namespace)
        self._listed = True
        there = {_key(run) for run in listed}
        gone = [
            run
            for key, run in self._runs.items()
            if (namespace is None or key.namespace == namespace) and key not in there
        ]
        for run in gone:
            self._take("DELETED", run)
        for run in listed:
            self._take("ADDED", run)

    def _take(self, kind: str, run: Run) -> None:
        key, before = _key(run), self._runs.get(_key(run))
        if kind == "DELETED":
            if before is None or _version(before)[0] != _version(run)[0]:
                return
            del self._runs[key]
        else:
            if before is not None and _version(before) == _version(run):
                return
            self._runs[key] = run
        self._tell(key)

    def _tell(self, key: RunKey) -> None:
        for waiter in self._waiters:
            waiter.tell(key)


def _read(run: Object) -> Run:
    if why := why_unshown(run):
        return _unreadable(run, why)
    try:
        return typed(run)
    except Unknown as error:
        log.warning("%s", error)
        return _unreadable(run, f"this dashboard cannot read what another release wrote: {error.why}")


def _unreadable(run: Object, why: str) -> Unreadable:
    about, phase = run["metadata"], (run.get("status") or {}).get("phase")
    return Unreadable(
        RunKey(about["namespace"], about["name"]), str(about["uid"]), str(about["resourceVersion"]),
        phase if isinstance(phase, str) else "Unknown", about.get("creationTimestamp"), why,
    )  # fmt: skip


def _key(run: Run) -> RunKey:
    return run.key if isinstance(run, Unreadable) else RunKey(run.metadata.namespace, run.metadata.name)


def _version(run: Run) -> tuple[str, str | None]:
    """Return the run's uid and resource version."""
    if isinstance(run, Unreadable):
        return run.uid, run.version
    return run.metadata.uid, run.metadata.resource_version
