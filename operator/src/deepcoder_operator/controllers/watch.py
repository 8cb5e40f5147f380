"""Runs as they come, change and go: kopf tells at once, a listing tells for certain.

Only a low-level handler is used: it patches nothing, so kopf adds neither annotations nor finalizers of its own, and
a lost or repeated event changes nothing, since the controller is level-triggered.

kopf works in a thread with an event loop of its own. When it ends it cancels every task of its loop, and in the main
thread it takes SIGTERM for itself: neither may happen to the parts beside it. It ends for good on what it takes for
final (a kind that is not served, a server that answers 5xx for a minute). So it is begun again after a bounded,
growing pause, each time after a listing, which also shows readiness probes that the kind is served. A listing now and
then finds what an event should have told; the controller hears of it at once, and where kopf does not tell of it soon
after, it has gone deaf and is begun again as well.

Of several namespaces one may be closed to us, since its Role goes with it when it is deleted. kopf ends as a whole
where it may not watch one: it is begun for the others alone, and anew once that one is open again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from deepcoder_operator.board import RunKey
from deepcoder_operator.controllers.bare_kopf import kopf
from deepcoder_operator.controllers.reconcile import run_key, version
from deepcoder_operator.controllers.run import RunController
from deepcoder_operator.controllers.stateless import NoDifferences, NoProgress
from deepcoder_operator.kube import access, errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.keep import kept
from deepcoder_operator.kube.resources import RUNS
from deepcoder_operator.kube.session import UNBOUNDED, open_session

log = logging.getLogger(__name__)

RELIST_SECONDS = 300.0
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
EVENT_SECONDS = 2.0
"""An event may take this long from the API server through kopf to us."""

_END_SECONDS = 5.0


class RunWatch:
    """Feeds the run controller."""

    def __init__(self, kube: Kube, controller: RunController, namespaces: Sequence[str] = ()) -> None:
        """`namespaces` are those to watch, none means all."""
        self._kube, self._controller, self._namespaces = kube, controller, tuple(namespaces)
        self.listed = asyncio.Event()
        self.alive_at = 0.0
        self.refused = False
        """Whether the API server did not let us list all of them when it was last asked."""

    async def run(self) -> None:
        """List and watch until cancelled."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            listing = await self._list()
            if listing is not None:
                pause = FIRST_PAUSE_SECONDS
                await self._follow(listing.namespaces)
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE_SECONDS)

    async def _list(self) -> _Listing | None:
        """Tell the controller of all runs; None if they cannot be listed now."""
        keep = partial(kept, RUNS)
        lists: list[tuple[list[Object], str]] = []
        closed: list[str] = []
        try:
            for namespace in self._namespaces or (None,):
                try:
                    lists.append(await self._kube.list(RUNS, namespace, keep=keep))
                except errors.Forbidden as e:
                    if namespace is None:
                        raise
                    closed.append(namespace)
                    log.warning("DeepCoderRuns of namespace %s are closed to us: %s", namespace, e)
        except errors.KubeError as e:
            self.refused = errors.refuses(e)
            log.warning("DeepCoderRuns cannot be listed: %s", e)
            return None
        finally:
            self.alive_at = asyncio.get_running_loop().time()
        self.refused = bool(closed)
        if not lists:
            return None
        self.listed.set()
        runs = [run for part, _ in lists for run in part]
        at = min(int(end) for _, end in lists)
        self._controller.listed(runs, at, closed)
        namespaces = tuple(n for n in self._namespaces if n not in closed)
        return _Listing({run_key(run): version(run) for run in runs}, at, namespaces)

    async def _follow(self, namespaces: tuple[str, ...]) -> None:
        """Have kopf watch these until it ends, and list now and then; sooner where a namespace is missing."""
        heard = _Heard(self._controller)
        thread = _KopfThread(heard, asyncio.get_running_loop(), namespaces)
        pause = RELIST_SECONDS if namespaces == self._namespaces else min(RELIST_SECONDS, MAX_PAUSE_SECONDS)
        thread.start()
        try:
            while not await _within(pause, thread.ended):
                listing = await self._list()
                if listing is not None and listing.namespaces != namespaces:
                    break
                if listing is None or not (lacking := heard.lacks(listing)):
                    continue
                if not await _within(EVENT_SECONDS, thread.ended) and (unheard := lacking - heard.since):
                    log.warning("kopf has not told of %d DeepCoderRuns, its watch is begun again", len(unheard))
                    break
        finally:
            thread.stop()
            await _within(_END_SECONDS, thread.ended)


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Whether something happens in this time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


class _Listing(NamedTuple):
    """Versions of all runs at a version of the whole."""

    runs: dict[RunKey, int]
    at: int
    namespaces: tuple[str, ...]
    """Those that are open to us; none where all are watched as one."""


class _Heard:
    """What kopf tells goes through here to the controller; what it told of each run is kept."""

    def __init__(self, controller: RunController) -> None:
        self.since: set[RunKey] = set()
        """Runs told of since the last question."""
        self._controller = controller
        self._versions: dict[RunKey, int] = {}

    def seen(self, obj: Object) -> None:
        """A run is there."""
        self.since.add(run_key(obj))
        self._versions[run_key(obj)] = version(obj)
        self._controller.seen(obj)

    def gone(self, obj: Object) -> None:
        """A run was deleted."""
        self.since.add(run_key(obj))
        self._versions.pop(run_key(obj), None)
        self._controller.gone(obj)

    def lacks(self, listing: _Listing) -> set[RunKey]:
        """Runs whose listed change or deletion kopf has not told of."""
        self.since.clear()
        changed = {key for key, listed in listing.runs.items() if self._versions.get(key, -1) < listed}
        lost = {k for k, told in self._versions.items() if k not in listing.runs and told <= listing.at}
        return changed | lost


class _KopfThread(threading.Thread):
    """One life of kopf. It hands events over to the loop that made it."""

    def __init__(self, heard: _Heard, home: asyncio.AbstractEventLoop, namespaces: Sequence[str]) -> None:
        super().__init__(name="kopf", daemon=True)
        self.ended = asyncio.Event()
        self._heard, self._home, self._namespaces = heard, home, namespaces
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Have it end soon; harmless when it has ended."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    def run(self) -> None:
        """The thread's part."""
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._watch())
        except Exception as e:
            log.warning("the watch of DeepCoderRuns has ended and is begun again: %s: %s", type(e).__name__, e)
        finally:
            self._tell(self.ended.set)

    async def _watch(self) -> None:
        await kopf.operator(
            registry=self._registry(),
            settings=_settings(),
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            standalone=True,
            stop_flag=self._stop,
        )

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            reached = access.find()  # anew, with files that may have been renewed
            return kopf.AiohttpSession(server=reached.server, aiohttp_session=open_session(reached, UNBOUNDED))

        @kopf.on.event(RUNS.group, RUNS.version, RUNS.plural, registry=registry)
        async def changed(*, event: Any, **_: Any) -> None:
            obj = _taken(event["object"])
            told = self._heard.gone if event["type"] == "DELETED" else self._heard.seen
            self._tell(told, obj)

        return registry

    def _tell(self, function: Any, *arguments: Any) -> None:
        """Call a function in the home loop, unless that has ended before us."""
        if not self._home.is_closed():
            self._home.call_soon_threadsafe(function, *arguments)


def _taken(raw: dict[str, Any]) -> Object:
    """A run out of kopf's hands, which would keep the last state of each, managed fields and all, while it is there."""
    obj = {"apiVersion": RUNS.api_version, "kind": RUNS.kind, **raw}
    raw.clear()
    return obj


def _settings() -> kopf.OperatorSettings:
    """No posting, no scanning for new kinds, no peering, no state on objects; every request and watch bounded."""
    made = kopf.OperatorSettings()
    made.persistence.diffbase_storage, made.persistence.progress_storage = NoDifferences(), NoProgress()
    made.posting.enabled = False
    made.scanning.disabled = True
    made.peering.standalone = True
    made.process.ultimate_exiting_timeout = None
    made.watching.server_timeout = 300
    made.watching.client_timeout = 330
    made.watching.connect_timeout = 10
    made.networking.request_timeout = 30
    made.networking.connect_timeout = 10
    return made
