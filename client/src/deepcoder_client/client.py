"""Runs from Python: apply, get, list, watch, wait, and the few changes that a run allows while it is going on.

Every call has the connection's deadline. Calls that follow a run survive a restart of the API server: a call without an
answer is repeated for `PATIENCE_SECONDS`, then the last error is raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcoder_client import deep_json
from deepcoder_client.connection import (
    APPLY,
    EVENTS,
    IDLE_SECONDS,
    PODS,
    POOLS,
    RUNS,
    Connection,
    Keep,
    Object,
)
from deepcoder_client.errors import Conflict, NotFound, NotInTime, NotStarted, Refused, Unreachable
from deepcoder_client.manifests import RunManifest, load, parse
from deepcoder_client.permissions import Right
from deepcoder_client.reading import changed, known, typed
from deepcoder_client.settings import NO_OVERRIDES, TIMEOUT_SECONDS, Overrides
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.run_status import Phase
from deepcoder_contracts.labels import LABEL_POOL, LABEL_RUN, pool_name

if TYPE_CHECKING:
    from deepcoder_client.run_folder import RunFolder

FIELD_MANAGER = "deepcoder-client"
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 120.0
TERMINAL = frozenset({Phase.COMPLETE, Phase.FAILED})
WATCH_SILENCE_SECONDS = 100.0
"""Bookmarks arrive about once a minute, so a watch that is silent for longer is dead."""
_WAITS = "is waiting to start"
"""What a kubelet says of a container that has no log yet."""
_TRIES = 5
_MARGIN_SECONDS = 30
"""A reopened log begins this many seconds after the silence did, so that no line is repeated."""


@dataclass(frozen=True)
class Change:
    """A change that a watch reports."""

    type: str
    """ADDED, MODIFIED or DELETED."""

    run: DeepCoderRun


class Client:
    """Access to the runs of a cluster as one user."""

    def __init__(
        self, context: str | None = None, *, kubeconfig: str | Path | None = None, namespace: str | None = None,
        timeout: float = TIMEOUT_SECONDS, connection: Connection | None = None, overrides: Overrides = NO_OVERRIDES,
    ) -> None:  # fmt: skip
        """Connect as the kubeconfig says, or use `connection`. `namespace` is the default namespace of all calls."""
        self.connection = connection or Connection.open(context, kubeconfig, timeout, overrides)
        self.namespace = namespace or self.connection.namespace

    def apply(
        self, manifest: RunManifest | Object | str | Path, *, namespace: str | None = None, force: bool = False,
        dry_run: bool = False, field_manager: str = FIELD_MANAGER,
    ) -> DeepCoderRun:  # fmt: skip
        """Create or change a run by server-side apply. `force` takes over fields with another owner.

        With `dry_run`, the API server validates the run with all its rules but stores nothing. Raises `Refused` and
        `Conflict`.
        """
        if isinstance(manifest, str | Path):
            manifest = load(manifest)
        elif isinstance(manifest, dict):
            manifest = parse(manifest)
        place = namespace or manifest.metadata.namespace or self.namespace
        query: dict[str, str | bool] = {"fieldManager": field_manager, "force": force, "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        try:
            answer = self.connection.patch(
                RUNS, place, manifest.metadata.name, manifest.to_object(place), APPLY, **query
            )
        except Conflict as error:
            raise Conflict(f"{error}; leave these fields out, or take them over with force") from error
        return typed(answer) if dry_run else changed(answer)

    def get(self, name: str, namespace: str | None = None) -> DeepCoderRun:
        """Return a run. Raises `NotFound`."""
        return typed(self.raw(name, namespace))

    def raw(self, name: str, namespace: str | None = None) -> Object:
        """Return a run as a plain object, which works even if the cluster is newer than this client."""
        try:
            return self.connection.get(RUNS, namespace or self.namespace, name)
        except NotFound as error:
            raise _absent(error, namespace or self.namespace, name) from None

    def list(
        self, namespace: str | None = None, *, all_namespaces: bool = False, selector: str = ""
    ) -> Sequence[DeepCoderRun]:
        """Return the runs of a namespace, or of all, sorted by namespace and name. `selector` is a label selector.

        A run that this release cannot read is left out, with a warning in the log.
        """
        items = self.raw_list(namespace, all_namespaces=all_namespaces, selector=selector)
        return [run for item in items if (run := known(item)) is not None]

    def raw_list(
        self, namespace: str | None = None, *, all_namespaces: bool = False, selector: str = "",
        keep: Keep | None = None,
    ) -> Sequence[Object]:  # fmt: skip
        """Return the runs that `list` selects, as plain objects; with `keep`, what it returns of each."""
        place = None if all_namespaces else namespace or self.namespace
        chosen = {"labelSelector": selector} if selector else {}
        items: list[Object] = self.connection.list(RUNS, place, keep=keep, **chosen)["items"]
        return sorted(items, key=lambda run: (run["metadata"]["namespace"], run["metadata"]["name"]))

    def watch(
        self, name: str | None = None, namespace: str | None = None, *, seconds: float, all_namespaces: bool = False
    ) -> Iterator[Change]:
        """Watch a run, or all runs, for `seconds`: yield the existing runs first, then each change.

        If the server ends the watch, it resumes from the last seen version, or from a new list if that version is too
        old. A run that this release cannot read is skipped, with a warning in the log.
        """
        for kind, run in self.raw_watch(name, namespace, seconds=seconds, all_namespaces=all_namespaces):
            if (read := known(run)) is not None:
                yield Change(kind, read)

    def raw_watch(
        self, name: str | None = None, namespace: str | None = None, *, seconds: float, all_namespaces: bool = False,
        patience: float = PATIENCE_SECONDS, keep: Keep | None = None,
    ) -> Iterator[tuple[str, Object]]:  # fmt: skip
        """Yield what `watch` yields, as (type, plain object). Each run is held; with `keep`, what it returns of each.

        Raises `Unreachable` if the API server does not answer for `patience` seconds.
        """
        place = None if all_namespaces else namespace or self.namespace
        chosen = {"fieldSelector": f"metadata.name={name}"} if name else {}
        end, told = time.monotonic() + seconds, dict[tuple[str, str], Object]()
        while time.monotonic() < end:
            give_up = min(end, time.monotonic() + patience)
            listed = self._patiently(lambda: self.connection.list(RUNS, place, keep=keep, **chosen), give_up)
            now = {_place(run): run for run in listed["items"]}
            for key in dict.fromkeys([*told, *now]):
                before, after = told.get(key), now.get(key)
                if after is None and before is not None:
                    yield "DELETED", before
                elif after is not None and (before is None or _version(before) != _version(after)):
                    yield "ADDED" if before is None else "MODIFIED", after
            told, version = now, _version(listed)
            del listed, now  # else what they hold would stay beside its later versions
            for kind, run in self._changes(place, version, chosen, end, keep):
                if kind == "DELETED":
                    told.pop(_place(run), None)
                else:
                    told[_place(run)] = run
                yield kind, run

    def _changes(
        self, place: str | None, version: str, chosen: dict[str, str], end: float, keep: Keep | None
    ) -> Iterator[tuple[str, Object]]:
        """Yield changes until the last seen version is too old for the server, or until the time `end`.

        If the server, or a proxy in front of it, ends each watch at once, at most one request is sent per
        `POLL_SECONDS`.
        """
        right = Right("watch", RUNS.plural, RUNS.group, place)
        while (left := end - time.monotonic()) > 0:
            asked: dict[str, str | int] = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
            asked |= {"timeoutSeconds": max(1, int(min(left, 300))), **chosen}
            began, ended = time.monotonic(), False
            try:
                for line in self.connection.lines(
                    RUNS, place, right, asked, idle=min(left + 10, WATCH_SILENCE_SECONDS)
                ):
                    kind, thing = _event(line, keep)
                    if kind == "ERROR":
                        ended = True
                        break
                    version = _version(thing)
                    if kind != "BOOKMARK":
                        yield kind, thing
            except (Unreachable, Refused, ValueError):
                ended = True
            if time.monotonic() < began + POLL_SECONDS:
                time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))
            if ended:
                return

    def wait(
        self, name: str, namespace: str | None = None, *, seconds: float,
        until: Callable[[DeepCoderRun], bool] | None = None,
    ) -> DeepCoderRun:  # fmt: skip
        """Wait until `until` is true for the run, by default until the run is Complete or Failed, and return it.

        Raises `NotInTime` after `seconds`, and `NotFound` if the run does not exist or was deleted.
        """
        holds = until or (lambda run: run.status.phase in TERMINAL)
        end = time.monotonic() + seconds
        while True:
            run: DeepCoderRun = self._patiently(lambda: self.get(name, namespace), end)
            if holds(run):
                return run
            if time.monotonic() >= end:
                raise NotInTime(
                    f"{run.metadata.namespace}/{name} is {run.status.phase} after {seconds:.0f} s: give it more time"
                )
            time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))

    def _patiently(self, ask: Callable[[], Any], end: float) -> Any:
        """Return `ask()`. While the API server is unreachable, retry until `end`, but at most `PATIENCE_SECONDS`."""
        give_up = min(end, time.monotonic() + PATIENCE_SECONDS)
        while True:
            try:
                return ask()
            except Unreachable:
                if time.monotonic() + POLL_SECONDS > give_up:
                    raise
                time.sleep(POLL_SECONDS)

    def approve(self, name: str, stages: Sequence[str], namespace: str | None = None) -> DeepCoderRun:
        """Approve held stages by adding their names to spec.approvedStages."""

        def added(run: Object) -> Object | None:
            there = [s["name"] for s in run["spec"]["stages"]]
            if unknown := [s for s in stages if s not in there]:
                raise Refused(f"{name} has no stage {', '.join(unknown)}: its stages are {', '.join(there)}")
            before = run["spec"].get("approvedStages") or []
            new = [s for s in dict.fromkeys(stages) if s not in before]
            return {"approvedStages": [*before, *new]} if new else None

        return self._change(name, namespace, added)

    def suspend(self, name: str, namespace: str | None = None) -> DeepCoderRun:
        """Suspend a run: its live attempt saves a checkpoint, and its pods are deleted."""
        return self._change(name, namespace, lambda run: None if run["spec"].get("suspend") else {"suspend": True})

    def resume(self, name: str, namespace: str | None = None) -> DeepCoderRun:
        """Resume a run from its newest checkpoint."""
        return self._change(name, namespace, lambda run: {"suspend": False} if run["spec"].get("suspend") else None)

    def _change(self, name: str, namespace: str | None, change: Callable[[Object], Object | None]) -> DeepCoderRun:
        """Change the current spec. On a conflict, read it again and retry, `_TRIES` times in all.

        Raises `Unknown`, with the run in `changed`, if the changed run cannot be read.
        """
        place = namespace or self.namespace
        for _ in range(_TRIES):
            run = self.raw(name, place)
            spec = change(run)
            if spec is None:
                return changed(run)
            version = {"resourceVersion": run["metadata"]["resourceVersion"]}
            try:
                answer = self.connection.patch(
                    RUNS, place, name, {"metadata": version, "spec": spec}, fieldManager=FIELD_MANAGER
                )
            except Conflict:
                continue
            return changed(answer)
        raise Conflict(f"{place}/{name} was changed by others {_TRIES} times in the meantime: try again")

    def pool(self, run: DeepCoderRun) -> Object | None:
        """Return the SandboxPool whose judges a run uses; None if it does not exist (yet)."""
        name = pool_name(run)
        return self.find_pool(run.metadata.namespace, name) if name else None

    def find_pool(self, namespace: str, name: str) -> Object | None:
        """Return a SandboxPool by name; None if it does not exist."""
        try:
            return self.connection.get(POOLS, namespace, name)
        except NotFound:
            return None

    def pods(self, run: DeepCoderRun | str, namespace: str | None = None, **labels: str) -> Sequence[Object]:
        """Return the run's pods, sorted by name, without the judges of its own pool. `labels` selects some of them."""
        place, name = (namespace, run) if isinstance(run, str) else (run.metadata.namespace, run.metadata.name)
        wanted = {LABEL_RUN: name, **labels}
        return self._pods(place or self.namespace, wanted)

    def judges(self, namespace: str, pool: str) -> Sequence[Object]:
        """Return a pool's pods, sorted by name."""
        return self._pods(namespace, {LABEL_POOL: pool})

    def _pods(self, namespace: str, labels: dict[str, str]) -> Sequence[Object]:
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        items = self.connection.list(PODS, namespace, labelSelector=selector)["items"]
        return sorted(items, key=lambda pod: str(pod["metadata"]["name"]))

    def pod_log(
        self,
        namespace: str,
        pod: str,
        container: str | None = None,
        *,
        follow: bool = False,
        tail: int | None = None,
        previous: bool = False,
    ) -> Iterator[str]:
        """Yield a container's log lines; with `follow` also new ones, until the container ends.

        `previous` selects the log of the container before its last restart. Raises `NotStarted` if the container has
        not started yet, and `Unreachable` if the log breaks off.
        """
        right = Right("get", "pods/log", "", namespace)
        query: dict[str, str | int] = {"follow": "true"} if follow else {}
        query |= {"container": container} if container else {}
        query |= {"previous": "true"} if previous else {}
        query |= {"tailLines": tail} if tail is not None else {}
        path = PODS.path(namespace, pod, "log")
        try:
            silent = yield from self.connection.lines(PODS, namespace, right, query, path)
        except Refused as error:
            if _WAITS in str(error):
                raise NotStarted(str(error)) from error
            raise
        if silent and not follow:
            raise Unreachable(f"the log of pod {pod} broke off after {IDLE_SECONDS:.0f} s of silence: is its node up?")
        query.pop("tailLines", None)
        while silent and follow:  # the log is quiet, or the connection broke: only a new request can tell
            query["sinceSeconds"] = int(IDLE_SECONDS) - _MARGIN_SECONDS
            try:
                silent = yield from self.connection.lines(PODS, namespace, right, query, path)
            except NotFound:
                return  # the pod was deleted in the meantime

    def events(self, namespace: str, *names: str) -> Sequence[Object]:
        """Return the events about objects with the given names, oldest first."""
        found = []
        for name in dict.fromkeys(names):
            found += self.connection.list(EVENTS, namespace, fieldSelector=f"involvedObject.name={name}")["items"]
        return sorted(found, key=lambda e: str(e.get("eventTime") or e["metadata"].get("creationTimestamp")))

    def folder(
        self, run: DeepCoderRun | str, namespace: str | None = None, *, endpoint: str | None = None
    ) -> RunFolder:
        """Open the run's folder in its bucket: metrics, samples, logs, lineage.

        Credentials are the user's own, else those of the run's Secret. `endpoint` is the server's URL from this
        machine, if it differs from the cluster's. Raises `StorageError`.
        """
        from deepcoder_client.run_folder import open_folder

        return open_folder(self.connection, self.get(run, namespace) if isinstance(run, str) else run, endpoint)


def _event(line: str, keep: Keep | None) -> tuple[str, Object]:
    event = deep_json.parsed(line)
    kind, thing = event["type"], event["object"]
    return kind, thing if keep is None or kind in ("ERROR", "BOOKMARK") else keep(thing)


def _place(run: Object) -> tuple[str, str]:
    return run["metadata"]["namespace"], run["metadata"]["name"]


def _version(thing: Object) -> str:
    return str(thing["metadata"]["resourceVersion"])


def _absent(error: NotFound, namespace: str, name: str) -> NotFound:
    if "chart" in str(error):
        return error
    return NotFound(f"no DeepCoderRun {name} in namespace {namespace}; choose another namespace with -n")
