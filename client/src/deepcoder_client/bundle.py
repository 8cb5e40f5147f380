"""What somebody who helps needs to see of a run, gathered into one archive without its secrets.

The rules are those of the operator's post-mortems (`deepcoder_contracts.redaction`): values of all Secrets that the
run's pods can read, and of variables that are named as secrets are, are sought in everything. Whoever may not read one
of these Secrets cannot know what is secret in what programs print, so unless they are asked for logs are then left out,
the operator's too, and every message that may quote one. What could not be had is listed with the reason. No part of it
fails the others.
"""

from __future__ import annotations

import base64
import binascii
import io
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import yaml

from deepcoder_client.client import Client, pool_of
from deepcoder_client.connection import CONFIGMAPS, PODS, RAYCLUSTERS, RAYJOBS, SECRETS, Object
from deepcoder_client.errors import ClientError, NotFound
from deepcoder_contracts.labels import LABEL_RUN
from deepcoder_contracts.redaction import (
    REDACTED,
    SECRET_NAME,
    Redactor,
    TooManyForms,
    named_values,
    referred_secrets,
    without_words,
)

LOG_LINES = 5000
PREVIOUS_LINES = 500
"""Of a container that was started again: what it said before it ended, which is why."""
OPERATOR_LINES = 20_000
OPERATOR_LABEL = "app.kubernetes.io/name=deepcoder-operator"
_NOISE = ("managedFields",)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass
class Bundle:
    """Documents by name, and what is missing, and why."""

    documents: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def archive(self, root: str) -> bytes:
        """As tar.gz, everything below one folder."""
        out = io.BytesIO()
        report = "".join(f"missing: {line}\n" for line in self.missing) or "nothing is missing\n"
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name, text in sorted({**self.documents, "REPORT.txt": report}.items()):
                data = text.encode()
                entry = tarfile.TarInfo(f"{root}/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                archive.addfile(entry, io.BytesIO(data))
        return out.getvalue()


def gather(client: Client, name: str, *, operator_namespace: str, logs: bool = False) -> Bundle:
    """A run's; raises `NotFound` and `Forbidden` for the run itself alone. `logs`: although a Secret cannot be read."""
    run = client.raw(name)
    made = Bundle()
    place = run["metadata"]["namespace"]

    def tried(what: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except ClientError as error:
            made.missing.append(f"{what}: {error}")
            return None

    def listed(what: str, kind: Any) -> list[Object]:
        found = tried(what, lambda: client.connection.list(kind, place, labelSelector=f"{LABEL_RUN}={name}"))
        return list(found["items"]) if found else []

    objects = {
        "run.yaml": [run],
        "rayjobs.yaml": listed("RayJobs", RAYJOBS),
        "rayclusters.yaml": listed("RayClusters", RAYCLUSTERS),
        "configmaps.yaml": listed("ConfigMaps", CONFIGMAPS),
    }
    pool_name = pool_of(run)
    if pool_name and (pool := tried("the SandboxPool", lambda: client.find_pool(place, pool_name))):
        objects["sandboxpool.yaml"] = [pool]
    pods = list(tried("pods", lambda: client.pods(name, place)) or ())
    if pool_name:
        known = {pod["metadata"]["name"] for pod in pods}
        judges = tried("judges", lambda: client.judges(place, pool_name)) or ()
        pods += [pod for pod in judges if pod["metadata"]["name"] not in known]
    objects["pods.yaml"] = pods
    about = [o["metadata"]["name"] for group in objects.values() for o in group]
    objects["events.yaml"] = list(tried("events", lambda: client.events(place, *about)) or ())
    redactor, all_known = _redactor(client, place, run, objects, made.missing)
    told = all_known or logs
    for document, group in objects.items():
        if group:
            clean = [redactor.document(_without_values(each if told else without_words(each))) for each in group]
            made.documents[document] = yaml.safe_dump_all(clean, sort_keys=False, allow_unicode=True)
    if told:
        for pod in pods:
            for container, previous in _containers(pod):
                what = f"{pod['metadata']['name']}.{container}" + (".previous" if previous else "")
                lines = PREVIOUS_LINES if previous else LOG_LINES
                text = tried(f"the log of {what}", partial(_log, client, pod, container, lines, previous=previous))
                if text:
                    made.documents[f"logs/{what}.log"] = redactor.text(text)
    else:
        made.missing.append(
            "logs, and messages of pods, conditions and events that may quote them: what is secret in them is not "
            "known; --include-logs takes them all the same"
        )
        return made
    operator = tried("the operator's log", lambda: _operator(client, operator_namespace, f"{place}/{name}", name))
    if operator:
        made.documents["operator.log"] = redactor.text(operator)
    elif operator == "":
        made.missing.append(f"the operator's log: none of its pods in namespace {operator_namespace} names the run")
    return made


def _redactor(
    client: Client, place: str, run: Object, objects: dict[str, list[Object]], missing: list[str]
) -> tuple[Redactor, bool]:
    """What takes secrets out, and whether it knows all of them."""
    s3 = run["spec"]["checkpoint"]["s3"].get("credentialsSecretRef")
    names = {**referred_secrets(objects["pods.yaml"]), **({str(s3["name"]): False} if s3 else {})}
    values = set(named_values(list(objects.values())))
    all_known = True
    for name, optional in names.items():
        try:
            data = client.connection.get(SECRETS, place, name).get("data") or {}
            values |= {base64.b64decode(value) for value in data.values()}
        except NotFound:
            all_known = all_known and optional
        except (ClientError, binascii.Error) as error:
            missing.append(f"Secret {name}, whose values are to be taken out: {error}")
            all_known = False
    try:
        return Redactor(values), all_known
    except TooManyForms as error:
        missing.append(f"values of Secrets to be taken out: {error}")
        return Redactor(()), False


def _without_values(value: Any) -> Any:
    """Without what is noise, and without values of variables that are named as secrets are."""
    if isinstance(value, dict):
        if isinstance(value.get("value"), str) and SECRET_NAME.search(str(value.get("name", "")).upper()):
            return {**value, "value": REDACTED}
        return {k: _without_values(v) for k, v in value.items() if k not in _NOISE and k != _LAST_APPLIED}
    return [_without_values(each) for each in value] if isinstance(value, list) else value


def _containers(pod: Object) -> Iterator[tuple[str, bool]]:
    """Names of a pod's containers, those that run before the others first; once more with True if it was restarted."""
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


def _operator(client: Client, namespace: str, *words: str) -> str:
    """Lines of the operator's pods that name the run."""
    pods = client.connection.list(PODS, namespace, labelSelector=OPERATOR_LABEL)["items"]
    texts = (_log(client, pod, pod["spec"]["containers"][0]["name"], OPERATOR_LINES) for pod in pods)
    return "\n".join(line for text in texts for line in text.splitlines() if any(word in line for word in words))
