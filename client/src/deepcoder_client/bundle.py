"""Collects what is needed to investigate a run into one archive, without its secrets.

The rules are those of the operator's post-mortems (`deepcoder_contracts.redaction`): the values of all Secrets that the
run's pods can read, and of variables with names like secrets, are removed from everything. A user who may not read one
of these Secrets cannot know what is secret in program output. Then logs are left out unless requested, including the
operator's, and so is every message that may quote one. Parts that could not be collected are listed with the reason; a
missing part does not stop the others.

Besides the run, the archive has what may hold runs up: nodes, the namespace's limits, and the operator's pods. The
output of past attempts is read from the bucket, because their pods are gone, and the live attempt's output from within
its head.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import yaml

from deepcoder_client.client import Client
from deepcoder_client.connection import (
    CONFIGMAPS,
    LIMITS,
    NETWORK_POLICIES,
    NODES,
    PODS,
    QUOTAS,
    RAYCLUSTERS,
    RAYJOBS,
    SECRETS,
    Kind,
    Object,
)
from deepcoder_client.driver_log import driver_lines
from deepcoder_client.errors import ClientError, Forbidden, NotFound, StorageError, StorageFault
from deepcoder_client.permissions import OPERATOR_LOG
from deepcoder_contracts.labels import COMPONENT_OPERATOR, HEAD, LABEL_COMPONENT, LABEL_ROLE, LABEL_RUN, pool_of
from deepcoder_contracts.redaction import (
    REDACTED,
    SECRET_NAME,
    Redactor,
    TooManyForms,
    named_values,
    referred_secrets,
    without_words,
)

if TYPE_CHECKING:
    from deepcoder_client.run_folder import Attempt, RunFolder

LOG_LINES = 5000
PREVIOUS_LINES = 500
"""Number of last lines of a restarted container's previous log, which show why it ended."""
LAST_ATTEMPTS = 2
"""Number of newest attempts whose files are read from the bucket."""
MOST_UNANSWERED = 2
"""Number of these files that may fail because the bucket does not answer. No other is read then: each takes minutes."""
OPERATOR_LINES = 20_000
OPERATOR_LAST_LINES = 50
"""Number of last lines of a restarted operator's previous log. They show why it ended, and may name no run."""
OPERATOR_LABEL = f"{LABEL_COMPONENT}={COMPONENT_OPERATOR}"
_SOMEBODYS = re.compile(r"\b(?:run|pool|of)\W+[-\w.]+/[-\w.]+|namespace")
"""Marks lines of the operator's log that may name a run, a pool or a namespace, of any team."""
_NOISE = ("managedFields",)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass
class Bundle:
    """Documents by name, and the missing parts with reasons."""

    documents: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def archive(self, root: str) -> bytes:
        """Return everything as tar.gz, below one folder."""
        out = io.BytesIO()
        report = "".join(f"missing: {line}\n" for line in self.missing) or "nothing is missing\n"
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name, text in sorted({**self.documents, "REPORT.txt": report}.items()):
                data = text.encode()
                entry = tarfile.TarInfo(f"{root}/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                archive.addfile(entry, io.BytesIO(data))
        return out.getvalue()


def gather(
    client: Client, name: str, *, operator_namespace: str, logs: bool = False, endpoint: str | None = None
) -> Bundle:
    """Collect the bundle of a run. Raises `NotFound` and `Forbidden` only for the run itself.

    `logs`: include program output even if a Secret cannot be read. `endpoint`: URL of the run's S3 server from here.
    """
    run = client.raw(name)
    asking = _Asking(client, Bundle(), name, run["metadata"]["namespace"])
    made = asking.made
    own = asking.objects(run)
    objects = own | asking.surroundings(operator_namespace)
    if not objects["operator.yaml"]:
        made.missing.append(
            f"the operator: it has no pod in namespace {operator_namespace} that you may see and that has the label "
            f"{OPERATOR_LABEL}, which charts of earlier releases do not set"
        )
    # Also what the specs name: the pods of a run that is over, or between two attempts, are gone.
    names = referred_secrets(list(own.values()))
    redactor, all_known = _redactor(client, asking.place, names, named_values(list(objects.values())), made.missing)
    told = all_known or logs
    for document, group in objects.items():
        if group:
            clean = [redactor.document(_without_values(each if told else without_words(each))) for each in group]
            made.documents[document] = yaml.safe_dump_all(clean, sort_keys=False, allow_unicode=True)
    if not told:
        made.missing.append(
            "logs, and messages of pods, conditions and events that may quote them: what is secret in them is not "
            "known; --include-logs includes them anyway"
        )
        return made
    words = asking.words(objects["pods.yaml"]) | asking.past(endpoint)
    words |= asking.operator(objects["operator.yaml"], operator_namespace, about_run(run, own))
    made.documents |= {document: redactor.text(text) for document, text in words.items()}
    return made


@dataclass(frozen=True)
class _Asking:
    """Collects the parts of one run's bundle, and notes those that cannot be read."""

    client: Client
    made: Bundle
    name: str
    place: str

    def tried(self, what: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except ClientError as error:
            self.made.missing.append(f"{what}: {error}")
            return None

    def listed(self, what: str, kind: Kind, place: str | None, **query: Any) -> list[Object]:
        found = self.tried(what, lambda: self.client.connection.list(kind, place, **query))
        return list(found["items"]) if found else []

    def objects(self, run: Object) -> dict[str, list[Object]]:
        """Collect the run, its objects, and their events."""
        mine = {"labelSelector": f"{LABEL_RUN}={self.name}"}
        objects = {
            "run.yaml": [run],
            "rayjobs.yaml": self.listed("RayJobs", RAYJOBS, self.place, **mine),
            "rayclusters.yaml": self.listed("RayClusters", RAYCLUSTERS, self.place, **mine),
            "configmaps.yaml": self.listed("ConfigMaps", CONFIGMAPS, self.place, **mine),
        }
        pods = list(self.tried("pods", lambda: self.client.pods(self.name, self.place)) or ())
        if pool_name := pool_of(run):
            if pool := self.tried("the SandboxPool", lambda: self.client.find_pool(self.place, pool_name)):
                objects["sandboxpool.yaml"] = [pool]
            known = {pod["metadata"]["name"] for pod in pods}
            judges = self.tried("judges", lambda: self.client.judges(self.place, pool_name)) or ()
            pods += [pod for pod in judges if pod["metadata"]["name"] not in known]
        objects["pods.yaml"] = pods
        about = [o["metadata"]["name"] for group in objects.values() for o in group]
        objects["events.yaml"] = list(self.tried("events", lambda: self.client.events(self.place, *about)) or ())
        return objects

    def surroundings(self, operator_namespace: str) -> dict[str, list[Object]]:
        """Collect objects outside the run that may hold the run up."""
        bounds = (("ResourceQuotas", QUOTAS), ("LimitRanges", LIMITS), ("NetworkPolicies", NETWORK_POLICIES))
        chart = {"labelSelector": OPERATOR_LABEL}
        return {
            "nodes.yaml": [_of_node(node) for node in self.listed("nodes", NODES, None)],
            "namespace.yaml": [o for what, kind in bounds for o in self.listed(what, kind, self.place)],
            "operator.yaml": self.listed("the operator's pods", PODS, operator_namespace, **chart),
        }

    def words(self, pods: Sequence[Object]) -> dict[str, str]:
        """Collect the output of the run's pods, and of the live trainer inside the head."""
        found = {}
        for pod in pods:
            for container, previous in _containers(pod):
                what = f"{pod['metadata']['name']}.{container}" + (".previous" if previous else "")
                lines = PREVIOUS_LINES if previous else LOG_LINES
                ask = partial(_log, self.client, pod, container, lines, previous=previous)
                if text := self.tried(f"the log of {what}", ask):
                    found[f"logs/{what}.log"] = text
            head = _runs(pod) and pod["metadata"].get("labels", {}).get(LABEL_ROLE) == HEAD
            if head and (text := self.tried("the output of the live trainer", partial(_driver, self.client, pod))):
                found["logs/driver.log"] = text
        return found

    def past(self, endpoint: str | None) -> dict[str, str]:
        """Collect the newest attempts' files from the bucket, because their pods are gone."""
        attempts = self.tried(
            "the files of past attempts", partial(_attempts, self.client, self.name, self.place, endpoint)
        )
        if not attempts:
            return {}
        folder, newest = attempts
        found, unanswered = {}, 0
        for attempt in newest:
            if attempt.exit is not None:
                found[_document(attempt, "exit.json")] = attempt.exit.model_dump_json(by_alias=True, indent=2)
        for attempt, name in [(each, log) for each in newest for log in each.logs]:
            document = _document(attempt, name)
            if unanswered == MOST_UNANSWERED:
                self.made.missing.append(f"{document}: not read, because the bucket does not answer")
                continue
            try:
                found[document] = folder.read_log(attempt.stage, attempt.ordinal, name)
            except ClientError as error:
                self.made.missing.append(f"{document}: {error}")
                unanswered += isinstance(error, StorageError) and error.fault is StorageFault.UNREACHABLE
        return found

    def operator(self, pods: Sequence[Object], namespace: str, about: Callable[[str], bool]) -> dict[str, str]:
        """Collect the operator's log lines about the run."""
        said = self.tried("the operator's log", lambda: _operator(self.client, pods, about))
        if said == "" and pods:
            self.made.missing.append(f"the operator's log: none of its pods in namespace {namespace} names the run")
        return {"operator.log": said} if said else {}


def _of_node(node: Object) -> Object:
    """Return what shows why a pod does not fit on a node, or was lost with it; not the node's hundred images."""
    spec, status = node.get("spec") or {}, node.get("status") or {}
    return {
        "kind": "Node",
        "metadata": {k: node["metadata"][k] for k in ("name", "labels", "creationTimestamp") if k in node["metadata"]},
        "spec": {k: spec[k] for k in ("taints", "unschedulable") if k in spec},
        "status": {k: status[k] for k in ("allocatable", "conditions") if k in status},
    }


def _runs(pod: Object) -> bool:
    return bool((pod.get("status") or {}).get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp"))


def _driver(client: Client, head: Object) -> str:
    meta = head["metadata"]
    lines = driver_lines(client.connection, meta["namespace"], meta["name"], tail=LOG_LINES, follow=False)
    return "\n".join(lines)


def _document(attempt: Attempt, name: str) -> str:
    return f"attempts/{attempt.ordinal:03d}/{name}"


def _attempts(client: Client, name: str, namespace: str, endpoint: str | None) -> tuple[RunFolder, list[Attempt]]:
    """Return the run's folder in the bucket, and its newest attempts."""
    folder = client.folder(name, namespace, endpoint=endpoint)
    return folder, folder.attempts()[-LAST_ATTEMPTS:]


def _redactor(
    client: Client, place: str, names: Mapping[str, bool], literal: Iterable[bytes], missing: list[str]
) -> tuple[Redactor, bool]:
    """Return the redactor, and whether it knows all secrets. `names`: Secrets, each with whether it is optional."""
    values = set(literal)
    all_known = True
    for name, optional in names.items():
        try:
            data = client.connection.get(SECRETS, place, name).get("data") or {}
            values |= {base64.b64decode(value) for value in data.values()}
        except NotFound:
            all_known = all_known and optional
        except (ClientError, binascii.Error) as error:
            missing.append(f"Secret {name}, whose values must be removed: {error}")
            all_known = False
    try:
        return Redactor(values), all_known
    except TooManyForms as error:
        missing.append(f"values of Secrets that must be removed: {error}")
        return Redactor(()), False


def _without_values(value: Any) -> Any:
    """Return a copy without noise and without the values of variables that are named like secrets."""
    if isinstance(value, dict):
        if isinstance(value.get("value"), str) and SECRET_NAME.search(str(value.get("name", "")).upper()):
            return {**value, "value": REDACTED}
        return {k: _without_values(v) for k, v in value.items() if k not in _NOISE and k != _LAST_APPLIED}
    return [_without_values(each) for each in value] if isinstance(value, list) else value


def _containers(pod: Object) -> Iterator[tuple[str, bool]]:
    """Yield each container's name with False, init containers first; if it was restarted, again with True."""
    status = pod.get("status") or {}
    for kind in ("initContainer", "container"):
        told = {s["name"]: s for s in status.get(f"{kind}Statuses") or ()}
        for name in (str(c["name"]) for c in pod["spec"].get(f"{kind}s") or ()):
            yield name, False
            if told.get(name, {}).get("restartCount"):
                yield name, True


def _log(client: Client, pod: Object, container: str, tail: int, *, previous: bool = False) -> str:
    meta = pod["metadata"]
    return "\n".join(client.pod_log(meta["namespace"], meta["name"], container, tail=tail, previous=previous))


def about_run(run: Object, own: Mapping[str, Sequence[Object]]) -> Callable[[str], bool]:
    """Return whether a line of the operator's log is about a run, given the run's own objects.

    The log is of all teams, so a name counts only as a whole, and with its namespace: another team may have a run of
    the same name, whose RayJobs are then named alike.
    """
    name, place = run["metadata"]["name"], re.escape(run["metadata"]["namespace"])
    names = {each["metadata"]["name"] for what, group in own.items() if what != "events.yaml" for each in group}
    placed = re.compile(_whole(f"{place}/(?:[a-z]+/)?(?:{_any_of(names | {name})})"))
    alone, there = re.compile(_whole(_any_of(names - {name}))), re.compile(_whole(place))
    return lambda line: bool(placed.search(line) or (alone.search(line) and there.search(line)))


def _any_of(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(names))) or "(?!)"  # which matches nothing


def _whole(name: str) -> str:
    """Return a pattern for a name that is no part of a longer one. A full stop may end a sentence after it."""
    return rf"(?<![-\w.])(?:{name})(?![-\w]|\.\w)"


def _operator(client: Client, pods: Sequence[Object], about: Callable[[str], bool]) -> str:
    """Return the operator's log lines about the run, and the last lines of restarted containers' previous logs that
    name no other run or pool."""
    found = []
    try:
        for pod in pods:
            for container, previous in _containers(pod):
                if previous:
                    text = _log(client, pod, container, OPERATOR_LAST_LINES, previous=True)
                    found += [line for line in text.splitlines() if about(line) or not _SOMEBODYS.search(line)]
                else:
                    text = _log(client, pod, container, OPERATOR_LINES)
                    found += [line for line in text.splitlines() if about(line)]
    except Forbidden as error:
        raise Forbidden(replace(error.right, granted_by=OPERATOR_LOG)) from error
    return "\n".join(found)
