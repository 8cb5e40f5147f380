"""What API servers' audit logs tell of requests that service accounts made: the proof of which rights are used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"},
    ],
}
"""Of service accounts, but those of Kubernetes' own controllers, everything; of others nothing."""


class Right(NamedTuple):
    """A verb on a kind, and where: what a request needs, or what a role grants."""

    group: str
    resource: str
    verb: str
    namespace: str | None = None
    """None: the whole cluster, or a kind that has no namespace."""
    name: str | None = None
    """Of the only object that is granted, or is asked for; None: any, or a request that names none."""

    def covers(self, needed: Right) -> bool:
        """Whether whoever is granted this may do what is needed."""
        return (
            self[:3] == needed[:3] and self.namespace in (None, needed.namespace) and self.name in (None, needed.name)
        )

    def __str__(self) -> str:
        place = f"in {self.namespace}" if self.namespace else "in the whole cluster"
        return f"{self.verb} {self.resource}.{self.group} {self.name or '(any)'} {place}"


@dataclass(frozen=True)
class Request:
    """One request of a service account."""

    user: str
    agent: str
    verb: str
    rights: tuple[Right, ...]
    """What it needs: an apply that creates is authorized as a creation too, which the log does not tell by itself."""
    namespace: str | None
    name: str | None
    allowed: bool
    """Whether a role grants it; what is asked for may still be refused."""
    at: datetime


_OPERATOR = "(operator-"
"""In the agent of each operator that ran as a process: its pod."""

_noted: set[Right] = set()


def note(kubeconfig: Path) -> None:
    """Keep which rights operators used at an API server that ends."""
    _noted.update(right for request in of_operators(kubeconfig) for right in request.rights)


def noted() -> frozenset[Right]:
    """What operators used at all API servers that ended in this process."""
    return frozenset(_noted)


def log_of(kubeconfig: Path) -> Path:
    """The audit log of the API server that this administrator's kubeconfig belongs to.

    What is full of it is put beside it, as audit-<time>.log.
    """
    return kubeconfig.parent / "audit.log"


def requests(kubeconfig: Path, user: str) -> list[Request]:
    """What a service account, given as namespace:name, has asked for until now, in the order of the answers."""
    name = f"system:serviceaccount:{user}"
    return [r for r in _read(log_of(kubeconfig), name) if r.user == name]


def of_operators(kubeconfig: Path) -> list[Request]:
    """What all operators have asked for that ran as processes: their requests name their pod."""
    return [r for r in _read(log_of(kubeconfig), _OPERATOR) if _OPERATOR in r.agent]


def granted(roles: list[dict[str, Any]]) -> list[Right]:
    """What Roles and ClusterRoles grant, each time that it is granted."""
    return [
        Right(group, resource, verb, role["metadata"].get("namespace"), name)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames") or [None]
    ]


def spare(rights: list[Right], needed: set[Right]) -> list[Right]:
    """Rights without which every request would still be granted."""
    found = []
    for number, right in enumerate(rights):
        others = rights[:number] + rights[number + 1 :]
        if all(any(o.covers(n) for o in others) for n in needed if right.covers(n)):
            found.append(right)
    return found


def too_wide(rights: list[Right], needed: set[Right], home: str) -> list[Right]:
    """Rights in the whole cluster, or on any object of the release's namespace, that less would do for."""
    found = []
    for right in rights:
        used = [n for n in needed if right.covers(n)]
        at_home = bool(used) and {n.namespace for n in used} == {home}
        one_object = right.name is None and len({n.name for n in used} - {None}) == 1
        if at_home and (right.namespace is None or one_object):
            found.append(right)
    return found


def _lines(path: Path) -> Iterator[str]:
    """The whole of a log, the oldest part first, without a last line that is still being written."""
    parts = [*sorted(path.parent.glob(f"{path.stem}-*{path.suffix}")), path]
    for part in parts:
        with part.open() as file:
            yield from (line for line in file if line.endswith("\n"))


def _read(path: Path, word: str) -> Iterator[Request]:
    """Each request once, of those whose line has the word; a watch is told of when it begins and when it ends.

    A log has tens of thousands, and to read one as JSON takes longer than all else that is asked of it.
    """
    seen: set[str] = set()
    for line in (found for found in _lines(path) if word in found):
        event = json.loads(line)
        target = event.get("objectRef") or {}
        if event["auditID"] in seen or "resource" not in target:
            continue
        seen.add(event["auditID"])
        resource = "/".join(p for p in (target["resource"], target.get("subresource")) if p)
        created = event["verb"] == "patch" and (event.get("responseStatus") or {}).get("code") == 201
        verbs = [event["verb"], *(["create"] if created else [])]
        yield Request(
            user=event["user"]["username"],
            agent=event.get("userAgent", ""),
            verb=event["verb"],
            rights=tuple(
                Right(target.get("apiGroup", ""), resource, verb, target.get("namespace"), _name(target, verb))
                for verb in verbs
            ),
            namespace=target.get("namespace"),
            name=target.get("name"),
            allowed=(event.get("annotations") or {}).get("authorization.k8s.io/decision") == "allow",
            at=datetime.fromisoformat(event["requestReceivedTimestamp"]),
        )


def _name(target: dict[str, Any], verb: str) -> str | None:
    """Of the object that the authorizer was asked about: a creation is authorized before its object has a name."""
    return None if verb == "create" else target.get("name")
