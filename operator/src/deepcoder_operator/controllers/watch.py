"""Watches runs: kopf delivers events at once, and a periodic listing makes sure that none is missed.

Only a low-level handler is used. It patches nothing, so kopf adds neither annotations nor finalizers of its own. Lost
or repeated events do no harm, because the controller is level-triggered.

kopf runs in a thread with its own event loop. When it ends, it cancels every task of its loop, and in the main thread
it would handle SIGTERM itself; neither may affect other parts of the operator. It ends for good on errors that it
considers final (a kind that is not served, a server that answers 5xx for a minute). So it is restarted after a bounded,
growing pause, each time after a listing, which also shows readiness probes that the kind is served. A periodic listing
finds changes that an event should have reported. The controller handles them at once, and if kopf does not report them
soon after, kopf has gone deaf and is restarted as well.

Access to one of several namespaces may be denied, because its Role is deleted together with it. kopf ends completely if
it may not watch one namespace. So it is started for the others only, and again once access is allowed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from deepcoder_operator.controllers.bare_kopf import kopf
from deepcoder_operator.controllers.reconcile import run_key, version
from deepcoder_operator.controllers.run import RunController
from deepcoder_operator.controllers.slim_answers import slim_answers
from deepcoder_operator.controllers.stateless import NoDifferences, NoProgress
from deepcoder_operator.kube import access, errors
from deepcoder_operator.kube.cache_transform import trim_for_cache
from deepcoder_operator.kube.client import PAGE, Kube, Object
from deepcoder_operator.kube.resources import RUNS
from deepcoder_operator.kube.session import UNBOUNDED, open_session
from deepcoder_operator.progress_board import RunKey

log = logging.getLogger(__name__)

RELIST_SECONDS = 300.0
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
EVENT_SECONDS = 2.0
"""Longest time that an event may take from the API server through kopf to us."""

_END_SECONDS = 5.0


class RunWatch:
    """Feeds the run controller."""

    def __init__(self, kube: Kube, controller: RunController, namespaces: Sequence[str] = ()) -> None:
        """`namespaces` limits the watch to these namespaces; without any it covers all."""
        self._kube, self._controller, self._namespaces = kube, controller, tuple(namespaces)
        self.listed = asyncio.Event()
        self.alive_at = 0.0
        self.refused = False
        """Whether the API server refused the last listing of all runs."""

    async def run(self) -> None:
        """List and watch until cancelled."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            listing = await self._list()
            if listing is not None:
                began = asyncio.get_running_loop().time()
                await self._follow(listing.namespaces)
                if asyncio.get_running_loop().time() - began > pause:  # kopf may end at once, each time
                    pause = FIRST_PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE_SECONDS)

    async def _list(self) -> _Listing | None:
        """Pass all runs to the controller. Returns None if they cannot be listed now."""
        keep = partial(trim_for_cache, RUNS)
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
                    log.warning("DeepCoderRuns of namespace %s may not be listed: %s", namespace, e)
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
        """Have kopf watch these namespaces until it ends, and list periodically, sooner if a namespace is missing."""
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
                    log.warning("kopf has not reported %d DeepCoderRuns, its watch is restarted", len(unheard))
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
    """Versions of all runs, at one version of the whole list."""

    runs: dict[RunKey, int]
    at: int
    namespaces: tuple[str, ...]
    """Namespaces that may be listed. Empty if all namespaces are watched at once."""


class _Heard:
    """Passes kopf's events to the controller, and remembers what kopf reported about each run."""

    def __init__(self, controller: RunController) -> None:
        self.since: set[RunKey] = set()
        """Runs reported since the last call of `lacks`."""
        self._controller = controller
        self._versions: dict[RunKey, int] = {}

    def seen(self, obj: Object) -> None:
        """Handle a new or changed run."""
        self.since.add(run_key(obj))
        self._versions[run_key(obj)] = version(obj)
        self._controller.seen(obj)

    def gone(self, obj: Object) -> None:
        """Handle a deleted run."""
        self.since.add(run_key(obj))
        self._versions.pop(run_key(obj), None)
        self._controller.gone(obj)

    def lacks(self, listing: _Listing) -> set[RunKey]:
        """Return runs whose listed change or deletion kopf has not reported."""
        self.since.clear()
        changed = {key for key, listed in listing.runs.items() if self._versions.get(key, -1) < listed}
        lost = {k for k, told in self._versions.items() if k not in listing.runs and told <= listing.at}
        return changed | lost


class _KopfThread(threading.Thread):
    """One life of kopf. It hands events to the loop that created it."""

    def __init__(self, heard: _Heard, home: asyncio.AbstractEventLoop, namespaces: Sequence[str]) -> None:
        super().__init__(name="kopf", daemon=True)
        self.ended = asyncio.Event()
        self._heard, self._home, self._namespaces = heard, home, namespaces
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Make it end soon. Does nothing if it has ended."""
        with suppress(RuntimeError):  # its loop is closed; it may close at any moment, so asking first is no help
            self._loop.call_soon_threadsafe(self._stop.set)

    def run(self) -> None:
        """Run kopf, in its thread."""
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._watch())
        except Exception as e:
            log.warning("the watch of DeepCoderRuns has ended and is restarted: %s: %s", type(e).__name__, e)
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
            reached = access.find()  # read again, because the files may have been renewed
            session = open_session(reached, UNBOUNDED, also=[slim_answers])
            return kopf.AiohttpSession(server=reached.server, aiohttp_session=session)

        @kopf.on.event(RUNS.group, RUNS.version, RUNS.plural, registry=registry)
        async def changed(*, event: Any, **_: Any) -> None:
            obj = _taken(event["object"])
            told = self._heard.gone if event["type"] == "DELETED" else self._heard.seen
            self._tell(told, obj)

        return registry

    def _tell(self, function: Any, *arguments: Any) -> None:
        """Call a function in the home loop, unless that has ended."""
        with suppress(RuntimeError):
            self._home.call_soon_threadsafe(function, *arguments)


def _taken(raw: dict[str, Any]) -> Object:
    """Take a run out of kopf's memory, which would keep the last state of each run, with its managed fields."""
    obj = {"apiVersion": RUNS.api_version, "kind": RUNS.kind, **raw}
    raw.clear()
    return obj


def _settings() -> kopf.OperatorSettings:
    """Configure kopf: no events, no scanning for new kinds, no peering, no state on objects, bounded requests."""
    made = kopf.OperatorSettings()
    made.persistence.diffbase_storage, made.persistence.progress_storage = NoDifferences(), NoProgress()
    made.posting.enabled = False
    made.scanning.disabled = True
    made.peering.standalone = True
    made.process.ultimate_exiting_timeout = None
    made.watching.chunk_size = PAGE
    made.watching.server_timeout = 300
    made.watching.client_timeout = 330
    made.watching.connect_timeout = 10
    made.networking.request_timeout = 30
    made.networking.connect_timeout = 10
    return made
