"""Runs from Python: apply, get, list, watch, wait, and the few changes that a run allows while it is going on.

Every call has the connection's deadline. Calls that follow a run survive a restart of the API server: a call without an
answer is repeated for `PATIENCE_SECONDS`, then the last error is raised.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from deepcoder_client.connection import (
    APPLY,
    EVENTS,
    PODS,
    POOLS,
    RUNS,
    TIMEOUT_SECONDS,
    Connection,
    Object,
)
from deepcoder_client.errors import Conflict, NotFound, NotInTime, Refused, Unknown, Unreachable
from deepcoder_client.kubeconfig import NO_OVERRIDES, Overrides
from deepcoder_client.manifests import RunManifest, load, parse
from deepcoder_client.permissions import Right
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.run_status import Phase
from deepcoder_contracts.labels import LABEL_POOL, LABEL_RUN, own_pool_name, pool_name

if TYPE_CHECKING:
    from deepcoder_client.run_folder import RunFolder

log = logging.getLogger(__name__)

FIELD_MANAGER = "deepcoder-client"
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 120.0
TERMINAL = frozenset({Phase.COMPLETE, Phase.FAILED})
_TRIES = 5


@dataclass(frozen=True)
class Change:
    """What a watch tells."""

    type: str
    """ADDED, MODIFIED or DELETED."""

    run: DeepCoderRun


class Client:
    """A user's view of the runs of a cluster."""

    def __init__(
        self, context: str | None = None, *, kubeconfig: str | Path | None = None, namespace: str | None = None,
        timeout: float = TIMEOUT_SECONDS, connection: Connection | None = None, overrides: Overrides = NO_OVERRIDES,
    ) -> None:  # fmt: skip
        """By the kubeconfig, or over a connection of one's own; `namespace` is meant where none is named."""
        self.connection = connection or Connection.open(context, kubeconfig, timeout, overrides)
        self.namespace = namespace or self.connection.namespace

    def apply(
        self, manifest: RunManifest | Object | str | Path, *, namespace: str | None = None, force: bool = False,
        dry_run: bool = False, field_manager: str = FIELD_MANAGER,
    ) -> DeepCoderRun:  # fmt: skip
        """Make it so, by server-side apply; `force` takes over fields that others own.

        `dry_run`: the API server checks it, with all its rules, and keeps nothing. Raises `Refused` and `Conflict`.
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
        return typed(answer)

    def get(self, name: str, namespace: str | None = None) -> DeepCoderRun:
        """A run; raises `NotFound`."""
        return typed(self.raw(name, namespace))

    def raw(self, name: str, namespace: str | None = None) -> Object:
        """A run as the API server has it, which a client that is older than the cluster can read as well."""
        try:
            return self.connection.get(RUNS, namespace or self.namespace, name)
        except NotFound as error:
            raise _absent(error, namespace or self.namespace, name) from None

    def list(
        self, namespace: str | None = None, *, all_namespaces: bool = False, selector: str = ""
    ) -> Sequence[DeepCoderRun]:
        """Runs of a namespace, or of all, by namespace and name; `selector` is a label selector.

        One of another release that cannot be read hides no other: it is left out, with a warning in the log.
        """
        items = self.raw_list(namespace, all_namespaces=all_namespaces, selector=selector)
        return [run for item in items if (run := _known(item)) is not None]

    def raw_list(
        self, namespace: str | None = None, *, all_namespaces: bool = False, selector: str = ""
    ) -> Sequence[Object]:
        """The same as the API server has them."""
        place = None if all_namespaces else namespace or self.namespace
        items: list[Object] = self.connection.list(RUNS, place, **({"labelSelector": selector} if selector else {}))[
            "items"
        ]
        return sorted(items, key=lambda run: (run["metadata"]["namespace"], run["metadata"]["name"]))

    def watch(
        self, name: str | None = None, namespace: str | None = None, *, seconds: float, all_namespaces: bool = False
    ) -> Iterator[Change]:
        """What becomes of a run, or of all, for so many seconds: first what is there, then each change.

        Where the server ends a watch it goes on from what was seen last, or from a new list where that is too old. A
        run of another release that cannot be read is passed over, with a warning in the log.
        """
        for kind, run in self.raw_watch(name, namespace, seconds=seconds, all_namespaces=all_namespaces):
            if (known := _known(run)) is not None:
                yield Change(kind, known)

    def raw_watch(
        self, name: str | None = None, namespace: str | None = None, *, seconds: float, all_namespaces: bool = False,
        patience: float = PATIENCE_SECONDS,
    ) -> Iterator[tuple[str, Object]]:  # fmt: skip
        """The same as (type, run as the API server has it); an API server that is away is raised after `patience`."""
        place = None if all_namespaces else namespace or self.namespace
        chosen = {"fieldSelector": f"metadata.name={name}"} if name else {}
        end, told = time.monotonic() + seconds, dict[tuple[str, str], Object]()
        while time.monotonic() < end:
            give_up = min(end, time.monotonic() + patience)
            listed = self._patiently(lambda: self.connection.list(RUNS, place, **chosen), give_up)
            now = {_place(run): run for run in listed["items"]}
            for key in dict.fromkeys([*told, *now]):
                before, after = told.get(key), now.get(key)
                if after is None and before is not None:
                    yield "DELETED", before
                elif after is not None and (before is None or _version(before) != _version(after)):
                    yield "ADDED" if before is None else "MODIFIED", after
            told = now
            for kind, run in self._changes(place, _version(listed), chosen, end):
                if kind == "DELETED":
                    told.pop(_place(run), None)
                else:
                    told[_place(run)] = run
                yield kind, run

    def _changes(
        self, place: str | None, version: str, chosen: dict[str, str], end: float
    ) -> Iterator[tuple[str, Object]]:
        """Changes until the version that was seen last is too old for the server, or the time is over.

        Where the server, or a proxy before it, ends each watch at once no more is asked than each `POLL_SECONDS`.
        """
        right = Right("watch", RUNS.plural, RUNS.group, place)
        while (left := end - time.monotonic()) > 0:
            asked: dict[str, str | int] = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
            asked |= {"timeoutSeconds": max(1, int(min(left, 300))), **chosen}
            began, ended = time.monotonic(), False
            try:
                for line in self.connection.lines(RUNS, place, right, asked, idle=min(left, 300) + 10):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        ended = True
                        break
                    version = _version(event["object"])
                    if event["type"] != "BOOKMARK":
                        yield event["type"], event["object"]
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
        """The run once `until` holds of it, by default once it is Complete or Failed.

        Raises `NotInTime` after `seconds`, and `NotFound` when there is none, or none any more.
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
        """The answer, asked for again while the API server is away, until the end and for no longer than patience."""
        give_up = min(end, time.monotonic() + PATIENCE_SECONDS)
        while True:
            try:
                return ask()
            except Unreachable:
                if time.monotonic() + POLL_SECONDS > give_up:
                    raise
                time.sleep(POLL_SECONDS)

    def approve(self, name: str, stages: Sequence[str], namespace: str | None = None) -> DeepCoderRun:
        """Let held stages be passed: their names are added to spec.approvedStages."""

        def added(run: Object) -> Object | None:
            known = [s["name"] for s in run["spec"]["stages"]]
            if unknown := [s for s in stages if s not in known]:
                raise Refused(f"{name} has no stage {', '.join(unknown)}: its stages are {', '.join(known)}")
            before = run["spec"].get("approvedStages") or []
            new = [s for s in dict.fromkeys(stages) if s not in before]
            return {"approvedStages": [*before, *new]} if new else None

        return self._change(name, namespace, added)

    def suspend(self, name: str, namespace: str | None = None) -> DeepCoderRun:
        """Drain the live attempt, which saves, and free its pods."""
        return self._change(name, namespace, lambda run: None if run["spec"].get("suspend") else {"suspend": True})

    def resume(self, name: str, namespace: str | None = None) -> DeepCoderRun:
        """Go on from the newest checkpoint."""
        return self._change(name, namespace, lambda run: {"suspend": False} if run["spec"].get("suspend") else None)

    def _change(self, name: str, namespace: str | None, change: Callable[[Object], Object | None]) -> DeepCoderRun:
        """Change a spec as it is now: read again, a few times, when somebody else was quicker."""
        place = namespace or self.namespace
        for _ in range(_TRIES):
            run = self.raw(name, place)
            spec = change(run)
            if spec is None:
                return typed(run)
            version = {"resourceVersion": run["metadata"]["resourceVersion"]}
            try:
                answer = self.connection.patch(
                    RUNS, place, name, {"metadata": version, "spec": spec}, fieldManager=FIELD_MANAGER
                )
            except Conflict:
                continue
            return typed(answer)
        raise Conflict(f"{place}/{name} was changed by others {_TRIES} times meanwhile: try again")

    def pool(self, run: DeepCoderRun) -> Object | None:
        """The SandboxPool that judges for a run, None where there is none (yet)."""
        name = pool_name(run)
        return self.find_pool(run.metadata.namespace, name) if name else None

    def find_pool(self, namespace: str, name: str) -> Object | None:
        """A SandboxPool by name, None where there is none."""
        try:
            return self.connection.get(POOLS, namespace, name)
        except NotFound:
            return None

    def pods(self, run: DeepCoderRun | str, namespace: str | None = None, **labels: str) -> Sequence[Object]:
        """The run's pods, by name, judges of a pool of its own left out; `labels` narrows them."""
        place, name = (namespace, run) if isinstance(run, str) else (run.metadata.namespace, run.metadata.name)
        wanted = {LABEL_RUN: name, **labels}
        return self._pods(place or self.namespace, wanted)

    def judges(self, namespace: str, pool: str) -> Sequence[Object]:
        """A pool's pods, by name."""
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
        """Lines of a container's log; with `follow` as they come, until the container ends or is silent for minutes.

        `previous`: of the container before, where it was started again.
        """
        right = Right("get", "pods/log", "", namespace)
        query: dict[str, str | int] = {"follow": "true"} if follow else {}
        query |= {"container": container} if container else {}
        query |= {"previous": "true"} if previous else {}
        query |= {"tailLines": tail} if tail is not None else {}
        return self.connection.lines(PODS, namespace, right, query, PODS.path(namespace, pod, "log"))

    def events(self, namespace: str, *names: str) -> Sequence[Object]:
        """Events about objects of these names, oldest first."""
        found = []
        for name in dict.fromkeys(names):
            found += self.connection.list(EVENTS, namespace, fieldSelector=f"regarding.name={name}")["items"]
        return sorted(found, key=lambda e: str(e.get("eventTime") or e["metadata"].get("creationTimestamp")))

    def folder(
        self, run: DeepCoderRun | str, namespace: str | None = None, *, endpoint: str | None = None
    ) -> RunFolder:
        """The run's folder in its bucket: metrics, samples, logs, lineage.

        Credentials are the user's own, else those of the run's Secret; `endpoint` is where this machine reaches the
        server, if elsewhere than the cluster does. Raises `StorageError`.
        """
        from deepcoder_client.run_folder import open_folder

        return open_folder(self.connection, self.get(run, namespace) if isinstance(run, str) else run, endpoint)


def pool_of(run: Object) -> str | None:
    """As the contracts' `pool_name`, of a run that a newer release may have written."""
    sandbox = run["spec"]["sandbox"]
    if "together" in sandbox:
        return None
    reference = sandbox.get("poolRef")
    return str(reference["name"]) if reference else own_pool_name(run["metadata"]["name"])


def typed(run: Object) -> DeepCoderRun:
    """A run as the API server has it, checked; raises `Unknown` with the field that this build cannot read."""
    try:
        return DeepCoderRun.model_validate(run)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise Unknown(f"{run['metadata']['namespace']}/{run['metadata']['name']}", f"{field}: {first['msg']}") from None


def _known(run: Object) -> DeepCoderRun | None:
    try:
        return typed(run)
    except Unknown as error:
        log.warning("%s", error)
        return None


def _place(run: Object) -> tuple[str, str]:
    return run["metadata"]["namespace"], run["metadata"]["name"]


def _version(thing: Object) -> str:
    return str(thing["metadata"]["resourceVersion"])


def _absent(error: NotFound, namespace: str, name: str) -> NotFound:
    if "chart" in str(error):
        return error
    return NotFound(f"no DeepCoderRun {name} in namespace {namespace}; another namespace is chosen with -n")
